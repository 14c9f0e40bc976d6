"""Several learners on one stream with the same seeds, run together where they can be, and saved."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from cllib.learners.heads import LearnerConfig
from cllib.models.memory_head import PER_RUN, MemoryHeadConfig
from cllib.results import Record, ranked, records, save
from cllib.streams import Stream
from cllib.training import run


def shape(config: LearnerConfig) -> LearnerConfig:
    """The configuration without the numbers in which runs of one program may differ."""
    head = config.head
    if isinstance(head, MemoryHeadConfig):
        zeros: dict[str, Any] = dict.fromkeys(PER_RUN, 0)
        head = replace(head, **zeros)
    return replace(config, head=head, step_size=0.0, weight_decay=0.0)


def together(learners: Mapping[str, LearnerConfig]) -> list[dict[str, LearnerConfig]]:
    """Learners grouped by `shape`, in order of appearance."""
    groups: dict[LearnerConfig, dict[str, LearnerConfig]] = {}
    for label, config in learners.items():
        groups.setdefault(shape(config), {})[label] = config
    return list(groups.values())


def compare(
    experiment: str,
    stream: Stream,
    learners: Mapping[str, LearnerConfig],
    seeds: Sequence[int],
    profile: str,
    where: Path | None,
    order: str = "published",
    device: str = "cpu",
    **options: Any,
) -> list[Record]:
    """Run every learner with every seed over the stream, return one record per learner, saved in `where` if given.

    order: "published", or "own": every run draws its sample order inside experiences from its seed. options: see
    `training.train`.
    """
    made: dict[str, Record] = {}
    for group in together(learners):
        configs = [config for config in group.values() for _ in seeds]
        outcome = run(stream, configs, [*seeds] * len(group), order == "own", device, **options)
        for record in records(experiment, stream, group, seeds, outcome, profile, order, device):
            made[record.label] = record
    ordered = [made[label] for label in learners]
    if where is not None:
        save(ordered, where)
    return ordered


def vary(base: LearnerConfig, **changes: Any) -> LearnerConfig:
    """The configuration with other values, whether they belong to the learner or to its head."""
    mine = {name: value for name, value in changes.items() if name in {f.name for f in fields(LearnerConfig)}}
    others = {name: value for name, value in changes.items() if name not in mine}
    return replace(base, head=replace(base.head, **others), **mine)


def grid(label: str, base: LearnerConfig, **axes: Sequence[Any]) -> dict[str, LearnerConfig]:
    """All combinations of values around a configuration, labelled "LABEL @ name=value ..."."""
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return {f"{label} @ " + " ".join(f"{k}={v:g}" for k, v in point.items()): vary(base, **point) for point in points}


def choose(
    experiment: str, stream: Stream, points: Mapping[str, LearnerConfig], seeds: Sequence[int], **options: Any
) -> LearnerConfig:
    """The point with the best mean accuracy on the stream's validation sets (ties as in `results.ranked`).

    The test sets are not even looked at.
    """
    made = compare(experiment, replace(stream, tests=()), points, seeds, **options)
    return points[ranked(made, "validation")[0].label]
