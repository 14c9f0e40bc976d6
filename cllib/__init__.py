"""Continual learning, reproduced: models, streams, training loops, results and figures behind the book's chapters."""

import os

# OpenMP threads that spin while they wait make small tensors up to twenty times slower as soon as anything else runs
# on the machine. Must be set before torch is imported; a value of the reader's own wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
