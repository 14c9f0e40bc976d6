"""Data to streams: ordered experiences, and the test sets that are the columns of the accuracy matrix."""

from cllib.streams.base import Experience, Stream, orders, thinned
from cllib.streams.nicv2 import NICv2, merged_first, seen
from cllib.streams.noisy import IMAGE_STREAMS, image_stream, noisy_stream
from cllib.streams.plane import PLANE_STREAMS, plane_stream
from cllib.streams.scenarios import SCENARIOS, StreamConfig, domains, from_folder, merged, permuted, sequence, split
from cllib.streams.tasks import KEYWORDS, TaskSequence, subsets

__all__ = [
    "IMAGE_STREAMS",
    "KEYWORDS",
    "PLANE_STREAMS",
    "SCENARIOS",
    "Experience",
    "NICv2",
    "Stream",
    "StreamConfig",
    "TaskSequence",
    "domains",
    "from_folder",
    "image_stream",
    "merged",
    "merged_first",
    "noisy_stream",
    "orders",
    "permuted",
    "plane_stream",
    "seen",
    "sequence",
    "split",
    "subsets",
    "thinned",
]
