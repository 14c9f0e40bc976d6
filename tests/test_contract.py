"""Every learner keeps the contract; learners that do not are told why."""

import pytest

from cllib.contract import CHECKS, candidates
from cllib.experiments import Config

CANDIDATES = candidates()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("config", CANDIDATES.values(), ids=CANDIDATES)
def test_learners_keep_the_contract(config: Config, check: str) -> None:
    CHECKS[check](config)
