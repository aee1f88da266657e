"""Checkpoints of others: the public reference's, and Mamba2 and Llama as Hugging Face keeps them.

Never imports `transformers`. Read `convert.py` first.
"""
