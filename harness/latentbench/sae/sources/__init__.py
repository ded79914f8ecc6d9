"""SAEs that were trained elsewhere: what every source shares, and latentbench's own folders."""
