"""What every test starts from."""

import pytest


@pytest.fixture(autouse=True)
def no_profile_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test` sets the smoke profile for the notebooks; the unit tests see the defaults."""
    monkeypatch.delenv("CLLIB_PROFILE", raising=False)
