"""Pages about what is inside a cell's artifacts: `latentbench report latents RUN`, `report flow` and `report steering`.

A page is one HTML file that works offline. It is read from the store; what was not stored is measured again with the
cell's model, where that is on this machine.

cells     the finished cells that a reader means, and what the store and the model know of them
latents   the page about latents of one SAE
flow      the page of a flow cell, or one of its graphs for other programs
steering  the page of a steered cell: `verdict` and `verdict_text` open it, `steering_panels`, `texts_panel`,
          `mechanism_panels` and what metrics state themselves (`contributed_panels`) follow; `steered_cell` is what
          they read;  figures, tables: what they are made of;  frontier: accuracy against what steering costs"""
