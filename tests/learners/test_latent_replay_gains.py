"""What replay is for, on the small stream (7.2, item 18): fixed seeds, generous bounds."""

from dataclasses import replace
from pathlib import Path

import pytest

from cllib.chapters import settings
from cllib.chapters.latent_replay import NAME
from cllib.experiments import compare
from cllib.models.latent_vit import LatentViT, macs
from cllib.streams import merged

# The chapter's quick profile, in which the gains are .17 and .07 and the standard deviation over seeds at most .03.
P = settings(NAME, "quick")


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    stream, store = P.stream_config().build(), tmp_path_factory.mktemp("gains")
    options = {"exam_every": 79, "eval_chunk": 225, "workers": 1, "progress": False, "store": Path(store)}
    streamed = {"latent": P.recipe(), "naive": P.recipe(buffer_size=0, cwr=False)}
    made = compare("gains", stream, streamed, [0, 1], **options)
    made += compare("gains", replace(merged(stream), name="all"), {"cumulative": P.cumulative()}, [0, 1], **options)
    return {record.label: float(record.metric("Acc").mean()) for record in made}


def test_18_latent_replay_beats_naive_training(accuracy: dict[str, float]) -> None:
    assert accuracy["latent"] >= accuracy["naive"] + 0.08


def test_18_all_at_once_is_no_worse(accuracy: dict[str, float]) -> None:
    assert accuracy["cumulative"] >= accuracy["latent"] - 0.02


@pytest.mark.parametrize("backbone", ["tiny", "b16"])
def test_19_a_step_costs_less_the_more_is_frozen(backbone: str) -> None:
    depth = 6 if backbone == "tiny" else 12
    costs = [macs(LatentViT(backbone, depth=depth, replay_block=f, weights="random"), 16, 84) for f in range(depth + 1)]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(costs)
