"""Equilibrium language models: sequence models whose layers are iterated to a fixed point."""

__version__ = "0.1.0"
