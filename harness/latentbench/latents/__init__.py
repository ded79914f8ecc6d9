"""Judge-free metrics of latents: what can be said about them without explaining them.

| study | declared in, measured in | needs | says |
| --- | --- | --- | --- |
| `latents` | firing.py, survey.py | texts | token entropy, multi-token ratio, density, largest activation, top examples |
| `decoder` | decoder.py, decoder_similarity.py | weights | largest cosine to another latent, cosine of encoder and decoder |
| `sparse_probing` | sparse_probing.py, probing.py | texts of several domains | which domain a document is from, from k latents |
| `labelled_probing` | labelled_probing.py, label_probes.py | labelled texts | which of two labels a text has, from k latents and from the hidden state |
| `tpp` | erasure.py, targeted_perturbation.py | labelled texts | what ablating a class's latents does to its probe and to the others' |
| `scr` | erasure.py, spurious_correlation.py | texts with two labels | how much of a spurious cue goes with its latents |
| `absorption` | absorption.py, first_letter.py | a model that knows first letters | how much of a letter's direction others took |

What is declared imports no torch; what measures is imported by name when it runs. Consistency between seeds is about several
SAEs at once, so it is no study of one cell: see decoder_similarity.py.
"""
