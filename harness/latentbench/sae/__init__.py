"""Sparse autoencoders: what they are, their variants, and how they are trained and kept.

options/            what a spec says of an SAE and of its training (no torch)
autoencoder         what every SAE is; sparse codes
encoders            which latents are active: encoders, selection per token or batch
dictionary          the dictionary SAE that selected variants are made of
linear              SAEs with a linear encoder, taken apart and put together; activation rules
variants/           the variants, one module per family
sources/            SAEs trained elsewhere, and formats of other libraries
sparse_kernels/     products with sparse codes on CPU and GPU, with their gradients
activation_stream   shuffled hidden states to train on
trainer             the training loop and the trainer of native variants
training_progress   how far a training is
memory              buffers that are used again, and what a training takes
artifact            SAEs on disk
cost                parameters and operations by formula"""
