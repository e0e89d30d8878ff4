"""Architectures, search spaces and their costs as values and files. Imports no framework."""
