"""Checkpoints: their file, the folder of a run, and the way back to networks."""
