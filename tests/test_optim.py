"""Optimisers with a run axis against torch's, one run at a time."""

import pytest
import torch

from cllib.optim import SGD, Adam, Rows, add, dense

RATES, DECAYS = torch.tensor([0.1, 0.01, 0.3]), torch.tensor([0.0, 0.1, 0.01])


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_equals_torch_run_by_run(name: str) -> None:
    start, gradients = torch.randn(3, 4, 2), torch.randn(20, 3, 4, 2)
    ours, optimiser = start.clone(), {"SGD": SGD, "Adam": Adam}[name](RATES, DECAYS)
    for gradient in gradients:
        optimiser.step({"w": ours}, {"w": gradient})
    for run in range(3):
        w = start[run].clone().requires_grad_()
        theirs = getattr(torch.optim, name)([w], lr=float(RATES[run]), weight_decay=float(DECAYS[run]))
        for gradient in gradients:
            w.grad = gradient[run].clone()
            theirs.step()
        torch.testing.assert_close(ours[run], w.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_rows_equal_their_dense_gradient(name: str) -> None:
    start = torch.randn(3, 4, 2)
    rows = Rows(torch.tensor([[0, 0], [1, 3], [2, 2]]), torch.randn(3, 2, 2))
    a, b = start.clone(), start.clone()
    for w, gradient in ((a, rows), (b, dense(rows, start))):
        {"SGD": SGD, "Adam": Adam}[name](RATES, DECAYS).step({"w": w}, {"w": gradient})
    torch.testing.assert_close(a, b)
    assert (a != start).any()


def test_rates_of_a_run_serve_all_its_banks() -> None:
    w = torch.zeros(6, 2)
    SGD(RATES, torch.zeros(3)).step({"w": w}, {"w": torch.ones(6, 2)})
    torch.testing.assert_close(w[:, 0], -RATES.repeat_interleave(2))


def test_sum_of_gradients() -> None:
    like, rows = torch.zeros(1, 3, 2), Rows(torch.tensor([[1]]), torch.ones(1, 1, 2))
    assert isinstance(add({"w": rows}, {"w": rows}, {"w": like})["w"], Rows)
    both = add({"w": rows}, {"w": torch.ones(1, 3, 2)}, {"w": like})["w"]
    assert torch.equal(dense(add({"w": rows}, {"w": rows}, {"w": like})["w"], like)[0, 1], torch.tensor([2.0, 2.0]))
    assert torch.equal(both[0], torch.tensor([[1.0, 1], [2, 2], [1, 1]]))


def test_adam_state_restores() -> None:
    w, optimiser = torch.zeros(3, 2), Adam(RATES, DECAYS)
    optimiser.step({"w": w}, {"w": torch.ones(3, 2)})
    other, copy = Adam(RATES, DECAYS), w.clone()
    other.load_state_dict(optimiser.state_dict())
    optimiser.step({"w": w}, {"w": torch.ones(3, 2)})
    other.step({"w": copy}, {"w": torch.ones(3, 2)})
    assert torch.equal(w, copy) and other.steps == 2
