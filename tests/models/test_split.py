"""Networks in two parts: where gradients stop, what trains, and any network as one of which g does nothing."""

import pytest
import torch
from torch import Tensor, nn

from cllib.errors import UserError
from cllib.models.networks import CNN, MLP
from cllib.models.split import Above, Split, Whole, as_split, learns

SHAPE = (1, 4, 4)


class Flat(Whole):
    """A network that is f alone."""


def two(detached: bool = False) -> Split:
    below = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Dropout(0.5))
    return Split(below, Flat(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5))), 5, detached)


def images(count: int = 7) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


# --- any network ---


@pytest.mark.parametrize("config", [MLP((9,)), CNN((3, 4))], ids=["mlp", "cnn"])
def test_any_network_is_f_with_nothing_below(config: MLP | CNN) -> None:
    network = config.build(SHAPE, 5).eval()
    split, x = as_split(network), images()
    assert split.represent(x) is x and not split.above.grows and split.above.grown == 0
    wanted = network(x)
    assert torch.equal(split(x), wanted) and torch.equal(split.above(x), wanted)
    z = split.above.body(x, noise=lambda rows, heads, tokens: pytest.fail("there is no attention to disturb"))
    assert z is x
    e = split.above.embed(z, first=1)
    assert torch.equal(e, wanted) and split.above.answer(e) is e
    assert {id(p) for p in split.parameters()} == {id(p) for p in network.parameters()}


def test_what_is_tuned_of_any_network_is_its_classifier() -> None:
    network = MLP((9, 8)).build(SHAPE, 5)
    assert as_split(network).above.tuned() == [network[-1]]
    with pytest.raises(UserError, match="no linear layer"):
        as_split(nn.Sequential(nn.Flatten(), nn.ReLU())).above.tuned()


def test_a_network_in_two_parts_is_taken_as_it_is() -> None:
    network = two()
    assert as_split(network) is network and network.classes == 5


def test_an_f_that_says_nothing_else_neither_grows_nor_diverges() -> None:
    bare, network = Above(), MLP((3,)).build(SHAPE, 2)
    whole = Whole(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for above in (bare, whole):
        above.grow(2)
        above.hold(True)
        assert above.grown == 0 and not above.grows and above.diverge(torch.zeros(2, 3)) is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()) and learns(network)
    for method in (bare.body, bare.embed, bare.answer):
        with pytest.raises(NotImplementedError):
            method(torch.zeros(1))
    with pytest.raises(NotImplementedError):
        bare.tuned()


def test_f_is_its_three_steps_one_after_the_other() -> None:
    class Counting(Above):
        def body(self, r: Tensor, noise: object = None) -> Tensor:
            return r + (1 if noise is None else 10)

        def embed(self, z: Tensor, first: int | None = None) -> Tensor:
            return 2 * z + (0 if first is None else first / 10)

        def answer(self, e: Tensor) -> Tensor:
            return e**2

    above, r = Counting(), torch.tensor([[1.0, 2.0]])
    assert torch.equal(above(r), torch.tensor([[16.0, 36.0]]))
    assert torch.allclose(above(r, lambda rows, heads, tokens: None, 5), torch.tensor([[22.5**2, 24.5**2]]))
    assert torch.equal(Split(nn.Identity(), above)(r), above(r))


# --- gradients and modes ---


def test_gradients_reach_g_until_it_is_frozen() -> None:
    network, x = two(), images()
    assert learns(network.below) and network.represent(x).requires_grad
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.below.parameters())
    network.below.requires_grad_(False)
    assert not learns(network.below) and not network.represent(x).requires_grad
    assert network(x).requires_grad, "f goes on learning"
    with torch.no_grad():
        assert not two().represent(x).requires_grad


def test_gradients_never_reach_a_detached_g() -> None:
    network, x = two(detached=True), images()
    assert learns(network.below) and not network.represent(x).requires_grad
    network(x).sum().backward()
    assert all(p.grad is None for p in network.below.parameters())
    assert all(p.grad is not None for p in network.above.parameters())
    attached = two()
    attached.load_state_dict(network.state_dict())
    assert torch.equal(network.eval().represent(x), attached.eval().represent(x))


@pytest.mark.parametrize("detached", [True, False])
def test_samples_that_need_a_gradient_get_one_through_a_frozen_g(detached: bool) -> None:
    network, x = two(detached).eval(), images().requires_grad_(True)
    network.below.requires_grad_(False)
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    weight = network.above.network[0].weight.sum(0) @ network.below[1].weight  # linear from end to end
    torch.testing.assert_close(gradient.flatten(1), weight.expand(7, -1))
    with torch.no_grad():
        assert not network.represent(x).requires_grad


def test_a_frozen_g_stays_in_evaluation_mode() -> None:
    network = two()
    assert network.train() is network and network.below.training and network.above.training
    network.eval()
    assert not network.below.training and not network.above.training
    network.below.requires_grad_(False)
    network.train()
    assert network.training and network.above.network[1].training
    assert not network.below.training and not network.below[2].training
    one, other = network.represent(images()), network.represent(images())
    assert torch.equal(one, other), "no dropout in it"


def test_one_parameter_that_learns_is_enough() -> None:
    network = two()
    network.requires_grad_(False)
    assert not learns(network)
    network.below[1].bias.requires_grad_(True)
    assert learns(network) and learns(network.below) and not learns(network.above)
    assert not learns(nn.Identity())
