"""What every test starts from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cllib import virtual_device  # noqa: F401 (torch takes no device that comes after the first backward pass)
from cllib.experiments import compare
from cllib.results import Record
from cllib.threads import one_thread as single
from samples import LP, MH, WHOLE


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes is run by those who ask for it, with `-m pairs`."""
    if "pairs" not in config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("pairs")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("pairs")]


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
