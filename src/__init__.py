"""Single-Path NAS on MindSpore."""

import os

# Damaged images are reported by this project, with their names; MindSpore's own warning for each
# only repeats that without a name. Its log level is read once, when it is first imported.
os.environ.setdefault("GLOG_v", "3")
