"""The SAE variants, one module per family; their options are in the module of the same name in `latentbench.sae.options`."""
