"""The pocket adapter: a tiny causal language model shipped with the project, and the text it was trained on.

adapter   what a spec names: the model, its texts, its word problems
text      the generators of the texts
tasks     the word problems as tasks of lm-eval
recipe    what the shipped weights were made with, and the model card
build     rebuilds the model
measure   measures it
"""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
"""The shipped model and its tokenizer, in the layout of transformers."""
