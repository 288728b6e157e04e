"""Benchmarks: run them from the top of the tree, as in ``python -m benchmarks.quick``."""
