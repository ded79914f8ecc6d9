"""Judge-free metrics of latents: what can be said about them without explaining them.

| study | needs | says |
| --- | --- | --- |
| `latents` (firing.py) | texts | token entropy, multi-token ratio, density, largest activation; keeps top examples for reports |
| `decoder` | weights | largest cosine to another latent, cosine of encoder and decoder |
| `sparse_probing` | texts of several domains | which domain a document is from, told from k latents |
| `absorption` | a model that knows first letters | how much of a letter's direction other latents have taken over |

Consistency between seeds is about several SAEs at once, so it is no study of one cell: see decoder_similarity.py."""
