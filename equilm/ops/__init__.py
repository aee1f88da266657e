"""Numerical operations as pure functions, one signature each; plain PyTorch is their meaning."""
