"""From a prompt to tokens: sampling, the engine that batches by sweep, and the server over it.

Read `request.py` first, then `engine.py`.
"""
