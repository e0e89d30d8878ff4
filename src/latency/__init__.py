"""Latency tables of a device: what is measured, in which runtimes, and what it says."""
