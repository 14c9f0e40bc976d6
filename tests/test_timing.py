"""What an experience costs, stage by stage, on a clock that is told the time."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from cllib.errors import UserError
from cllib.feeds import Portions
from cllib.learners.cwr import Rows
from cllib.learners.latent_replay import LatentReplay, LatentReplaySettings
from cllib.memory import LatentBuffer
from cllib.models.latent_vit import LatentViT, Lower
from cllib.models.networks import MLP
from cllib.randomness import generator
from cllib.recipes import Recipe
from cllib.streams.base import Experience, Stream
from cllib.timing import STAGES, Stopwatch, summary, time_batches


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time

    def costs(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, seconds: float) -> None:
        """Every call takes so long."""
        real = getattr(owner, name)

        def slow(*args: Any, **named: Any) -> Any:
            self.time += seconds
            return real(*args, **named)

        monkeypatch.setattr(owner, name, slow)


def pictures(count: int = 5, each: int = 6, tests: int = 7) -> Stream:
    draws = generator(0, "pictures")

    def part(n: int) -> Experience:
        x = torch.randint(0, 256, (n, 3, 32, 32), generator=draws, dtype=torch.uint8)
        return Experience(x, torch.arange(n) % 3, (0, 1, 2))

    return Stream("pictures", 3, tuple(part(each) for _ in range(count)), (part(tests),), ())


def recipe(frozen: int | None = 5, **changes: Any) -> Recipe:
    settings = LatentReplaySettings(**{"buffer_size": 6, "later_epochs": 2, **changes})
    return Recipe("latent", settings, LatentViT(replay_block=frozen), batch_size=3, step_size=0.01)


def test_a_stage_inside_another_stops_the_outer_clock() -> None:
    clock = Clock()
    watch = Stopwatch(clock, "cpu")
    with watch.stage(STAGES[2]):
        clock.time += 1
        with watch.stage(STAGES[1]):
            clock.time += 10
            with watch.stage(STAGES[3]):
                clock.time += 100
            clock.time += 10
        clock.time += 1
        with watch.stage(STAGES[1]):
            clock.time += 1000
    clock.time += 5000
    assert watch.seconds == {STAGES[0]: 0, STAGES[1]: 1020, STAGES[2]: 2, STAGES[3]: 100, STAGES[4]: 0}
    assert watch.timed(lambda a, b=0: a + b, STAGES[0])(2, b=3) == 5


def test_19_every_stage_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds as powers of ten by what is called, so that none can hide in another's; tests are never taken."""
    clock = Clock()
    for owner, name, seconds in (
        (Lower, "forward", 1.0),
        (LatentBuffer, "take", 10.0),
        (Portions, "order", 0.01),
        (LatentReplay, "remember", 1e3),
        (Rows, "finish", 1e5),
        (LatentReplay, "_replace", 1e6),
        (LatentReplay, "predict", 1e12),
    ):
        clock.costs(monkeypatch, owner, name, seconds)
    made = time_batches(recipe(), pictures(), count=2, warm_up=1, clock=clock)
    assert len(made) == 2
    for one in made:  # (6 + 6) div 3 mini-batches of 1 new sample: 6 steps an epoch, of which 3 replay 2 each
        assert (one["steps"], one["new"]) == (12, 6)
        assert [round(one[name], 6) for name in STAGES] == [1, 6 * 10 + 2 * 0.01, 12 * 1e3, 1e5, 1e6]


def test_19_the_frozen_part_is_counted_once_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    real = Lower.forward

    def slow(self: Lower, x: torch.Tensor) -> torch.Tensor:
        clock.time += len(x)
        return real(self, x)

    monkeypatch.setattr(Lower, "forward", slow)
    for later in (1, 3):
        made = time_batches(recipe(later_epochs=later), pictures(), count=3, clock=clock)
        assert [one["frozen forward"] for one in made] == [6, 6, 6]
        assert all(sum(one[name] for name in STAGES) == 6 for one in made)


def test_19_where_nothing_is_frozen_below_nothing_is_looked_up_beforehand() -> None:
    clock = Clock()
    made = time_batches(recipe(None), pictures(4), count=1, clock=clock)
    assert made[0]["frozen forward"] == 0 and len(made) == 1


@pytest.mark.parametrize(("count", "warm_up", "left"), [(2, 1, [8, 9]), (5, 1, [8, 9, 10]), (1, 0, [7]), (2, 3, [10])])
def test_19_first_and_warming_up_are_left_out(count: int, warm_up: int, left: list[int]) -> None:
    draws, raw = generator(0, "more"), pictures()
    x = torch.randint(0, 256, (10, 3, 32, 32), generator=draws, dtype=torch.uint8)
    parts = tuple(Experience(x[:n], torch.arange(n) % 3, (0, 1, 2)) for n in range(6, 11))
    made = time_batches(recipe(), replace(raw, experiences=parts), count, warm_up, clock=Clock())
    assert [one["new"] for one in made] == left


def test_19_timing_changes_nothing_for_what_comes_after() -> None:
    time_batches(recipe(), pictures(3), 1, clock=Clock())
    assert "take" not in vars(LatentBuffer("float32")) and LatentReplay.finish.__name__ == "finish"


def test_20_the_summary_is_in_milliseconds() -> None:
    made: list[dict[str, Any]] = [
        {**dict.fromkeys(STAGES, 0.1 * k), "steps": 10, "new": 5} for k in range(1, 6)
    ]  # fmt: skip
    table = summary(made)
    assert [*table.columns] == ["median, ms", "25 %", "75 %"]
    assert [*table.index] == [*STAGES, "all", "a step", "a new image"]
    assert table.loc["buffer update"].tolist() == pytest.approx([300, 200, 400])
    assert table.loc["all"].tolist() == pytest.approx([1500, 1000, 2000])
    assert table.loc["a step", "median, ms"] == pytest.approx(150)
    assert table.loc["a new image", "25 %"] == pytest.approx(200)


def test_other_networks_can_be_timed_too() -> None:
    made = time_batches(Recipe("latent", LatentReplaySettings(buffer_size=6), MLP((4,)), batch_size=3), pictures(3), 1)
    assert made[0]["frozen forward"] < made[0]["forward, backward, step"]


def test_a_stream_with_nothing_left_to_time_is_refused() -> None:
    with pytest.raises(UserError, match="warm_up = 4: nothing is left to be timed of 3 experiences"):
        time_batches(recipe(), pictures(3), 1, 4, clock=Clock())
