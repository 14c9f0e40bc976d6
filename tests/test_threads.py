"""How many cores there are to share."""

import pytest

from cllib.threads import cores


def test_cores_are_those_this_process_has_or_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLLIB_CORES", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert cores() == 3
    monkeypatch.setenv("CLLIB_CORES", "7")
    assert cores() == 7
