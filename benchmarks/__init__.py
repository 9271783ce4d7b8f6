"""Benchmarks of the kernels and of training steps; `python -m benchmarks.gpu` is the one command on a CUDA machine."""
