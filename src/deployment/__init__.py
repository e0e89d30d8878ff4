"""From a checkpoint to a model file for inference."""
