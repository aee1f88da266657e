"""Mixers, stacks, equilibria and the language model, as single-device code.

Read `mixer.py` first.
"""
