"""Event files that TensorBoard reads, and curves that are drawn while a learner trains."""

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cllib import figures
from cllib.contract import tiny_stream
from cllib.errors import UserError
from cllib.experiments import compare
from cllib.models.networks import MLP
from cllib.recipes import Recipe
from cllib.results import Record
from cllib.watching import TensorBoard, each

ER = Recipe("er", network=MLP((8,)), batch_size=8, epochs=2)


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    store = tmp_path_factory.mktemp("store")
    learners = {"naive": Recipe(network=MLP((8,)), batch_size=8), "er": ER}
    return compare("x", tiny_stream(), learners, [1, 2], store=store, probe_every=2)


def test_tensorboard_files_hold_losses_and_accuracies(tmp_path: Path) -> None:
    (record,) = compare(
        "x", tiny_stream(), {"er": ER}, [1], store=tmp_path / "s", tensorboard=tmp_path / "tb", probe_every=3
    )
    (folder,) = {path.parent for path in (tmp_path / "tb").rglob("events.*")}
    assert folder.name == record.runs[0] and "er, seeds 1" in str(folder)
    found = events(folder)
    assert {"loss", "accuracy", "accuracy/0", "accuracy/1", "accuracy/2"} == set(found)
    assert [step for step, _ in found["loss"]] == [1, 3, 6, 6, 7, 9, 12, 12, 13, 15, 18, 18]
    assert found["accuracy"][-1][1] == pytest.approx(float(np.mean(record.test[0][-1])), abs=1e-4)


def test_a_resumed_run_hides_what_it_does_again(tmp_path: Path) -> None:
    first, second = TensorBoard(tmp_path), TensorBoard(tmp_path)
    for step in (1, 2, 3):
        first(step, {"loss": 10.0})
    second(3, {"loss": 20.0})
    assert events(tmp_path)["loss"] == [(1, 10.0), (2, 10.0), (3, 20.0)]


def test_each_tells_all() -> None:
    told: list[int] = []
    each([lambda step, _: told.append(step), lambda step, _: told.append(-step)])(3, {})
    assert told == [3, -3]


def test_live_curves_start_over_with_every_run_and_update_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, figure: object) -> None:
            shown.append("update")

    monkeypatch.setattr("cllib.figures.runs.display", lambda figure, display_id: shown.append("new") or Handle())
    curves = figures.LiveCurves(seconds=0)
    for step, loss in ((1, 3.0), (2, 2.0), (1, 5.0)):
        curves(step, {"loss": loss, "accuracy": 0.5, "accuracy/0": 0.5})
    assert shown == ["new", "update", "update"]
    assert curves.present["loss"] == [(1, 5.0)] and len(curves.runs) == 2
    left, right = curves.figure().axes
    assert len(left.lines) == 1 and len(right.lines) == 2


def test_stability_shows_a_line_a_test_set_and_wants_a_curve(records: list[Record]) -> None:
    figure = figures.stability(records)
    assert [len(ax.lines) for ax in figure.axes] == [3 + 2, 3 + 2]  # test sets, and borders
    (bare,) = compare("x", tiny_stream(), {"naive": Recipe(network=MLP((8,)))}, [1], probe_every=0)
    with pytest.raises(UserError, match="naive: no curve was measured"):
        figures.stability([bare])


def test_confused_shows_shares_of_each_class(records: list[Record]) -> None:
    mesh = figures.confused(records[1], list("abcdef")).axes[0].collections[0]
    assert np.allclose(mesh.get_array().reshape(6, 6).sum(1), 1)
