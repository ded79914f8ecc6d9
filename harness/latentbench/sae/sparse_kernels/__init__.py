"""Products with sparse codes, and their gradients, on every device.

autograd         the differentiable products that SAEs use
dispatch         which backend computes them, for the tensors at hand
backend          what a backend offers; torch operations, which run everywhere
numba_backend    kernels for CPUs: products
selection        kernels for CPUs: selection
compiling        how kernels for CPUs are compiled and shared out among threads
triton_backend   kernels for CUDA"""
