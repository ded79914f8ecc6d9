"""Sparse autoencoders: what they are, their variants, and how they are trained and kept.

options/            what a spec says of an SAE and of its training (no torch)
autoencoder         what every SAE is; sparse codes
encoders            which latents are active: encoders, activation rules, selection per token or batch
dictionary          the dictionary SAE that selected variants are made of
linear              SAEs with a linear encoder, taken apart and put together
variants/           the variants, one module per family
sparse_kernels/     products with sparse codes on CPU and GPU, with their gradients
activation_stream   shuffled hidden states to train on
trainer             the training loop and the trainer of native variants
memory              buffers that are used again, and what a training takes
artifact            SAEs on disk
cost                parameters and operations by formula"""
