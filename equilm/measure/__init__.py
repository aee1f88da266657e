"""Measurements of models as Records: accuracy, self-checks, Jacobians, speed.

Read `evaluate.py` first.
"""
