"""Searches: superkernels, one-shot supernets, and random networks as a control."""
