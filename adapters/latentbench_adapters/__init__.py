"""Adapters: models, texts, problems, judges and SAEs from elsewhere, behind the interfaces of `latentbench.core.protocols`.

An adapter is a part of a spec that knows how to open what it names. It is registered as an entry point, so a package of
somebody else's adds one in the same way as these. Importing one imports no torch.

    datasets                      texts: files of the project, files of an installed package, datasets of the hub
    text_files                    files with texts, plain or compressed: tables by row, plain texts by document
    row_filters                   conditions on the rows of a table
    mixtures                      several texts as one, in stated shares
    problems                      problems with answers that can be verified: files, datasets of the hub
    arithmetic                    questions of simple arithmetic as problems, and as tasks of the LM Evaluation Harness
    transformers_model            any causal language model of `transformers`, from the hub or a folder
    package_model                 a language model that an installed Python package brings along
    model_placement               a model spread over devices, memory and disk
    model_files                   what a model folder is and may hold, read before any library opens it
    model_loading                 loading a folder or a model of the hub, without pickles and code of others
    gguf_model                    what is known of a GGUF file, and the folder of the store that it was converted to
    gguf_conversion               how it is converted
    jinja_sandbox                 templates of others, rendered within bounds
    pocket                        the model that ships with the project, its texts and problems, and how it was made
    judges                        who explains and scores latents: endpoints, local chat models
    lm_eval                       tasks of the LM Evaluation Harness, and a steered model as one of its models
    sae_lens                      SAEs of sae-lens: loading, training with its losses, export
    sparsify                      SAEs of EleutherAI's sparsify
    dictionary_learning           SAEs of the dictionary_learning library
    dictionary_learning_weights   its classes as linear dictionaries
"""
