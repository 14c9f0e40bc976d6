"""MODES and MOONS, the 2D streams of chapter 1 (rules 2.2)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from cllib.datasets import points as plane
from cllib.datasets.points import Points
from cllib.errors import one_of
from cllib.streams.base import Experience, Stream

PLANE_SETS: dict[str, Callable[[], Points]] = {"modes": plane.modes, "moons": plane.moons}
PLANE_SCENARIOS = ("iid", "ci", "cdi", "cdid")
PLANE_STREAMS = tuple(f"{name}-{scenario}" for name in PLANE_SETS for scenario in PLANE_SCENARIOS)


def plane_stream(name: str) -> Stream:
    """One of `PLANE_STREAMS`: a set and an order, e.g. "modes-cdi".

    iid: one experience. ci: by class, domains mixed. cdi: domain by domain, by class inside. cdid: cdi with samples
    sorted by their first coordinate. Validation keeps the first half of the experiences (iid: of the samples), as
    published.
    """
    one_of("stream", name, PLANE_STREAMS)
    which, scenario = name.split("-")
    parts = {part: arrange(points, scenario) for part, points in plane.split(PLANE_SETS[which]()).items()}
    half = first_half(parts["validation"])
    return Stream(name, plane.CLASSES, parts["train"], parts["test"], half, sortable=scenario != "cdid")


def arrange(points: Points, scenario: str) -> tuple[Experience, ...]:
    """Cut points into experiences; sorting is stable (the released order depends on an unstable sort, rules P6)."""
    if scenario == "iid":
        again = points.take(plane.published_permutation(len(points)))
        return (Experience(again.x, again.y, tuple(range(plane.CLASSES))),)
    key = points.y if scenario == "ci" else points.y + plane.CLASSES * points.domain
    if scenario == "cdid":
        points = points.take(np.argsort(points.x[:, 0].numpy(), kind="stable"))
        key = points.y + plane.CLASSES * points.domain
    return tuple(one_group(points, key == group, scenario) for group in key.unique(sorted=True))


def one_group(points: Points, mask: Tensor, scenario: str) -> Experience:
    """The points of one class (and domain) as an experience."""
    x, y, domain = points.x[mask], points.y[mask], points.domain[mask]
    return Experience(x, y, (int(y[0]),), None if scenario == "ci" else int(domain[0]))


def first_half(parts: tuple[Experience, ...]) -> tuple[Experience, ...]:
    """The first half of the experiences; of the samples if there is but one."""
    if len(parts) == 1:
        n = len(parts[0]) // 2
        return (replace(parts[0], x=parts[0].x[:n], y=parts[0].y[:n]),)
    return parts[: len(parts) // 2]
