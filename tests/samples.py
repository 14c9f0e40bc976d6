"""A small stream, two heads and their records, for tests of what is made from records."""

from dataclasses import replace

import numpy as np

from cllib.learners.heads import LearnerConfig
from cllib.models.classic import ClassicConfig
from cllib.models.memory_head import MemoryHeadConfig
from cllib.results import Record
from cllib.streams import plane_stream, thinned

STREAM = thinned(plane_stream("modes-cdi"), 25)
WHOLE = replace(STREAM, whole=True)  # as if it were all of it
LP, MH = LearnerConfig(ClassicConfig("lp")), LearnerConfig(MemoryHeadConfig())


def with_accuracy(record: Record, values: list[float], **changes) -> Record:
    """The record with the last row of every seed's matrix set to one accuracy."""
    test = np.zeros((len(values), 2, 2))
    test[:, -1] = np.array(values)[:, None]
    return replace(record, test=test.tolist(), seeds=list(range(len(values))), **changes)
