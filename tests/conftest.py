"""What every test starts from."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from cllib import virtual_device  # noqa: F401 (torch takes no device that comes after the first backward pass)
from cllib.experiments import compare
from cllib.results import Record
from cllib.threads import one_thread as single
from samples import LP, MH, WHOLE

# Whole files go to one process each (loadfile): those that take longest begin, so that none is waited for at the end.
LONGEST = ("test_cluster.py", "test_site.py", "test_kill.py", "test_sweeps.py", "03_latent_replay.ipynb")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes is run by those who ask for it, with `-m pairs`; of the rest the longest first."""
    if "pairs" not in config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("pairs")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("pairs")]
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def the_same_in_any_order() -> None:
    """No test sees which others ran before it in its process."""
    torch.manual_seed(0)
    plt.close("all")


@pytest.fixture(autouse=True)
def no_profile_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test` sets the smoke profile for the notebooks; the unit tests see the defaults."""
    monkeypatch.delenv("CLLIB_PROFILE", raising=False)


@pytest.fixture(autouse=True)
def own_artifacts(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs are kept where no other test finds them."""
    folder = tmp_path_factory.mktemp("artifacts")
    monkeypatch.setenv("CLLIB_ARTIFACTS", str(folder))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, for tests that compare bits or train small networks."""
    with single():
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two heads over three seeds."""
    store = tmp_path_factory.mktemp("store")
    return compare("table", WHOLE, {"lp": LP, "MH m=16": MH}, [1, 2, 3], "quick", store=store)
