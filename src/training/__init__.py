"""Training: the loop, its tasks and steps, evaluation, log, compiled graphs between runs."""
