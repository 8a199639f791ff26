"""The GPU target: kernels as Triton source, steps as CUDA graphs. Importing this package does not import Triton."""
