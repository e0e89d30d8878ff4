"""Images on disk and what happens to them before a network. Imports no framework."""
