"""Checkpoints of others, in and out, and the face of our models for Hugging Face's `transformers`.

Reading never imports `transformers`; `modeling.py` and what it is made of do. Read `convert.py`
first.
"""
