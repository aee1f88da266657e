"""Training, by one process or many: recipes, schedules, checkpoints, the loop.

Read `trainer.py` first.
"""
