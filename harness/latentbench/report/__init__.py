"""Pages about what is inside of a cell's artifacts: `latentbench report latents RUN`, `report flow` and `report steering`.

A page is one HTML file that works offline. It is read from the store; what was not stored is measured again with the
cell's model, where that is on this machine."""
