"""Names of what searches and served supernets leave in their folders. Imports no framework."""

from __future__ import annotations

HISTORY = "history.jsonl"  # of a superkernel search: a line per step
TABLE = "latency_table.json"  # of a superkernel search: its costs
PATHS = "paths.jsonl"  # of a one-shot search: a line per evaluated path
ACCURACIES = "subnets.jsonl"  # of networks of a supernet: a header, and a line per network
ACCURACIES_FORMAT, ACCURACIES_VERSION = "spnas-subnets", 1
FRONT = "front.json"  # networks that a supernet serves
SERVE, SEARCH = "serve.json", "search.json"  # settings: of serving, of a one-shot search
# Key of these settings and of the header of accuracies: data set, classes, image size. Older files
# lack it and are continued all the same.
IMAGES = "images"
