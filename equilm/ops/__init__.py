"""Numerical operations as pure functions, one signature each; plain PyTorch is their meaning.

A file holds a function and its plain twin, one behind it that ends in `_triton` the launches of its
kernels, and one in `_kernels` the kernels where they are long. Read `scan.py` first.
"""
