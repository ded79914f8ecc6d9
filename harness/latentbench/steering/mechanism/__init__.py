"""What a steering vector does inside the model (Small Vectors, Big Effects, arXiv 2509.06608, sections 5 to 7).

passages     texts the steered model wrote, and both models' passes over them
lens         the vector read through the unembedding
shift        how next-token probabilities move, by position
attention    how attention patterns and MLP outputs move
persistence  how the perturbation travels through later layers
paths        which way through the last block it takes: path patching, and direct logit attribution
"""
