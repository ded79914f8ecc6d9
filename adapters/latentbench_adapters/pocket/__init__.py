"""The pocket adapter: a tiny causal language model shipped with the project, and the text it was trained on."""
