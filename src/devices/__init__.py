"""Several devices: rank tables, one process per device, what the processes tell each other."""
