"""Names of what programs leave in the folders of their runs. Imports no framework."""

from __future__ import annotations

RUN = "ckpt_0"  # the folder of a run, in its `checkpoint_path`
CONFIG = "config.yaml"  # its settings, with which it is resumed
ARCH = "arch.json"  # the network that was trained, found or served
SPACE = "space.json"  # the space of a supernet
METRICS = "metrics.jsonl"  # losses and validations: a line of each
BEST = "best.ckpt"  # the checkpoint of the highest accuracy
INHERITED = "inherited.ckpt"  # of a search: weights that its network had in the supernet
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
