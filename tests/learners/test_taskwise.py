"""What happens at the borders of tasks: moments forgotten, smaller steps, norms put away and taken out again."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cllib.checkpoints import digest
from cllib.contract import Noisy, tiny_stream
from cllib.learners.taskwise import Taskwise
from cllib.models.binary import BinaryMLP, binary_weights
from cllib.models.networks import MLP, logits_of
from cllib.models.norms import norm_state
from cllib.recipes import Recipe
from cllib.streams.base import inputs
from cllib.training import train

STREAM = tiny_stream()
PLAIN = Recipe(network=BinaryMLP(hidden=(9,), norm="running"), optimizer="metaplastic", step_size=0.02, batch_size=6)
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "metaplastic", "meta": (2.0,)},
    {"optimizer": "adam"},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.9},
]


def wrapped(recipe: Recipe = PLAIN, **border: Any) -> Any:
    learner = replace(recipe, **border).build(STREAM, 1)
    assert isinstance(learner, Taskwise)
    return learner


def task(learner: Any, e: int, recipe: Recipe = PLAIN) -> None:
    learner.begin(STREAM.experiences[e])
    for x, y in recipe.feed(STREAM, 1).batches(e):
        learner.observe(x, y)
    learner.finish(STREAM.experiences[e])


def weights(learner: Any) -> list[Tensor]:
    return [p.detach().clone() for p in learner.network.parameters()]


def test_a_border_is_only_where_something_happens() -> None:
    assert not isinstance(PLAIN.build(STREAM, 1), Taskwise) and not PLAIN.border
    for border in ({"reset": True}, {"gamma": 2.0}, {"own_norms": True}):
        assert replace(PLAIN, **border).border
        wrapped(**border)


@pytest.mark.parametrize("told", OPTIMIZERS, ids=lambda told: told["optimizer"])
def test_an_optimiser_that_starts_afresh_is_a_new_one(told: dict[str, Any]) -> None:
    recipe = replace(PLAIN, **told)
    learner, other = wrapped(recipe, reset=True), recipe.build(STREAM, 1)
    for e in (0, 1, 2):
        if e:  # what the original does: a new optimiser over the same network
            fresh = recipe.build(STREAM, 1)
            fresh.network.load_state_dict(other.state_dict()["network"])
            other = fresh
        task(learner, e, recipe)
        task(other, e, recipe)
        assert all(torch.equal(a, b) for a, b in zip(weights(learner), weights(other), strict=True)), e


@pytest.mark.parametrize("told", OPTIMIZERS, ids=lambda told: told["optimizer"])
def test_without_a_reset_the_optimiser_goes_on(told: dict[str, Any]) -> None:
    recipe = replace(PLAIN, **told)
    learner, other, reset = wrapped(recipe, own_norms=True), recipe.build(STREAM, 1), wrapped(recipe, reset=True)
    for e in (0, 1):
        for one in (learner, other, reset):
            task(one, e, recipe)
    assert all(torch.equal(a, b) for a, b in zip(weights(learner), weights(other), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(learner), weights(reset), strict=True))


@pytest.mark.parametrize("reset", [True, False])
def test_the_step_size_is_divided_at_every_border(reset: bool) -> None:
    learner, rates = wrapped(gamma=2.0, reset=reset), []
    for e in (0, 1, 2):
        learner.begin(STREAM.experiences[e])
        rates.append([group["lr"] for group in learner.learner.optimiser.param_groups])
        learner.finish(STREAM.experiences[e])
    assert rates == [[0.02, 0.02], [0.01, 0.01], [0.005, 0.005]]
    assert [group["meta"] for group in learner.learner.optimiser.param_groups] == [0.0, 0.0]


def test_the_first_task_is_as_without_borders() -> None:
    learner, other = wrapped(gamma=2.0, reset=True, own_norms=True), PLAIN.build(STREAM, 1)
    task(learner, 0)
    task(other, 0)
    assert all(torch.equal(a, b) for a, b in zip(weights(learner), weights(other), strict=True))
    assert digest(learner.state_dict()["learner"]) == digest(other.state_dict())


# --- norms ---


@pytest.mark.parametrize("norm", ["running", "batch"])
def test_every_task_is_answered_with_its_own_norms(norm: str) -> None:
    recipe = replace(PLAIN, network=BinaryMLP(hidden=(9,), norm=norm))
    learner, states = wrapped(recipe, own_norms=True), []
    assert learner.told
    for e in (0, 1):
        task(learner, e, recipe)
        states.append(norm_state(learner.network))
    learner.begin(STREAM.experiences[2])
    x = inputs(STREAM.tests[0].x)
    answers = {}
    twin = recipe.build(STREAM, 1).network
    for j in (0, 1, 2, None):
        twin.load_state_dict(learner.network.state_dict() | (states[j] if j in (0, 1) else {}))
        answers[j] = learner.predict(x, j)
        torch.testing.assert_close(answers[j], logits_of(twin, x))
    assert not torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    assert torch.equal(answers[2], answers[None]) and torch.equal(answers[2], learner.learner.predict(x))
    assert torch.equal(answers[1], answers[2]), "nothing was learned since"


def test_answering_changes_nothing_and_weights_are_never_put_back() -> None:
    learner = wrapped(own_norms=True)
    task(learner, 0)
    early = {name: w.detach().clone() for name, w in binary_weights(learner.network).items()}
    task(learner, 1)
    before = digest(learner.state_dict())
    learner.predict(STREAM.tests[0].x, 0)
    assert digest(learner.state_dict()) == before
    assert not any(torch.equal(early[name], w) for name, w in binary_weights(learner.network).items())
    assert not any(name.startswith("fc") for state in learner.norms for name in state)


def test_norms_come_back_when_answering_fails() -> None:
    learner = wrapped(own_norms=True)
    task(learner, 0)
    task(learner, 1)
    before = digest(learner.state_dict())
    with pytest.raises(RuntimeError):
        learner.predict(STREAM.tests[0].x[:, :, :3], 0)
    assert digest(learner.state_dict()) == before


def test_own_norms_matter_for_old_tasks_only() -> None:
    """The last task is answered with the present norms; so is every task without norms of its own."""
    accuracies = {}
    for own_norms in (True, False):
        recipe = replace(PLAIN, own_norms=own_norms, reset=True, epochs=5)
        learner = recipe.build(STREAM, 1)
        accuracies[own_norms] = train(learner, STREAM, recipe.feed(STREAM, 1), progress=False).test[0]
    own, shared = accuracies[True], accuracies[False]
    assert np.array_equal(np.diag(own), np.diag(shared)) and np.array_equal(np.triu(own), np.triu(shared))
    assert (np.tril(own, -1) != np.tril(shared, -1)).any()


def test_a_wrapper_without_norms_asks_as_its_learner_does() -> None:
    assert not wrapped(reset=True).told and wrapped(replace(PLAIN, network=BinaryMLP(hidden=(9,))), reset=True).told
    assert not wrapped(replace(PLAIN, network=MLP((9,))), reset=True).told


# --- what is kept ---


def test_norms_are_owned_up_to() -> None:
    learner = wrapped(own_norms=True)
    assert learner.sizes()["norms"] == 0
    for e in (0, 1):
        task(learner, e)
    each = 4 * (9 + 6) + 2  # scale, shift, mean, variance, and a counter, of two layers
    assert learner.sizes()["norms"] == 2 * each == sum(t.numel() for t in learner.parts()["norms"])
    assert learner.bytes()["norms"] == 2 * (4 * 4 * (9 + 6) + 2 * 8)
    assert learner.sizes()["network"] == learner.learner.sizes()["network"]


@pytest.mark.parametrize("name", ["naive", "er", "ewc", "si"])
def test_any_learner_of_networks_can_be_wrapped(name: str) -> None:
    recipe = Recipe(name, network=Noisy(), optimizer="adam", batch_size=6, reset=True, gamma=1.5, own_norms=True)
    learner = recipe.build(STREAM, 1)
    outcome = train(learner, STREAM, recipe.feed(STREAM, 1), progress=False)
    assert outcome.test.shape == (1, 3, 3) and not outcome.diverged.any()
    assert learner.seed == 1 and "loss" in learner.losses and set(learner.learner.parts()) < set(learner.parts())


def test_a_state_is_taken_over_whole() -> None:
    learner, other = wrapped(own_norms=True, reset=True, gamma=2.0), wrapped(own_norms=True, reset=True, gamma=2.0)
    task(learner, 0)
    other.load_state_dict(learner.state_dict())
    for one in (learner, other):
        task(one, 1)
    assert digest(learner.state_dict()) == digest(other.state_dict()) and other.tasks == 2
    x = STREAM.tests[0].x
    assert torch.equal(other.predict(x, 0), learner.predict(x, 0)) and not torch.equal(
        other.predict(x, 0), other.predict(x)
    )
    assert other.learner.optimiser.param_groups[0]["lr"] == 0.01
