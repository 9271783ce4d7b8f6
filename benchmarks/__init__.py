"""Benchmarks of the kernels and of training steps; `python -m benchmarks.gpu` is the one command on a CUDA machine."""

AGAIN = " (again)"
"""Suffix of the second timing of the same version, whose difference from the first is noise."""
