"""What a steering vector does inside the model (Small Vectors, Big Effects, arXiv 2509.06608, sections 5 to 7).

passages       texts the steered model wrote, and both models' passes over them
output_tokens  the vector read through the unembedding, and how next-token probabilities move, by position
propagation    how attention patterns, MLP outputs and the residual stream of later layers move
paths          which way the vector takes to the logits: path patching in the last block, and direct logit attribution
ablations      how much of the gain in accuracy is there without the vector, or with some layers of it
metrics        the studies that a spec can ask for, which name their implementation in the modules above: no torch
"""
