"""Training on one device: recipes, schedules, checkpoints, the loop."""
