"""The optimiser that consolidates does as torch's own do: copies, files, groups, gradients that lack."""

import io
import pickle
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook

from cllib.errors import UserError
from cllib.metaplasticity import GATES, MetaplasticAdam, f_meta
from cllib.randomness import generator

SHAPES = ((4, 3), (5,), (2, 3, 2, 2), (1, 1), ())
RULES: list[dict[str, Any]] = [{"gate": gate, "seed": 3 * k, "meta": 3.0} for k, gate in enumerate(GATES)]
GATED = pytest.mark.parametrize("rule", RULES, ids=GATES)


def made(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    draws = generator(0, "weights")
    return [nn.Parameter(0.5 * torch.randn(shape, generator=draws).to(dtype)) for shape in shapes]


def advance(optimiser: torch.optim.Optimizer, start: int, end: int, lacking: Callable[[int, int], bool]) -> None:
    """Steps start .. end - 1 on gradients of their own; parameter k has none in step t if `lacking(k, t)`."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for t in range(start, end):
        for k, p in enumerate(parameters):
            g = torch.randn(p.shape, generator=generator(t, f"gradient {k}")) + 0.5
            p.grad = None if lacking(k, t) else g.to(p.dtype)
        optimiser.step()


def never(k: int, t: int) -> bool:
    return False


def late(k: int, t: int) -> bool:
    """The first parameters come last, and all now and then."""
    return t < 2 * (len(SHAPES) - k) or (k + t) % 4 == 0


def everything(optimiser: torch.optim.Optimizer) -> list[Any]:
    """Weights, state and options, to be compared."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    options = [{**group, "params": len(group["params"])} for group in optimiser.param_groups]
    return [[p.detach().clone() for p in parameters], [{**optimiser.state.get(p, {})} for p in parameters], options]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)


def saved_and_loaded(optimiser: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimiser, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def reloaded(optimiser: Any) -> Any:
    """Another optimiser, made with other options, that takes over the state."""
    parameters = [nn.Parameter(p.detach().clone()) for group in optimiser.param_groups for p in group["params"]]
    other = MetaplasticAdam(parameters, lr=0.7, betas=(0.1, 0.2), meta=50.0, gate="growing", seed=99)
    other.load_state_dict(optimiser.state_dict())
    return other


def reloaded_from_file(optimiser: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimiser.state_dict(), file)
    file.seek(0)
    other = reloaded(optimiser)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": deepcopy,
    "pickle": lambda optimiser: pickle.loads(pickle.dumps(optimiser)),
    "torch.save": saved_and_loaded,
    "state_dict": reloaded,
    "state_dict in a file": reloaded_from_file,
}


# --- copies, files and states ---


@GATED
@pytest.mark.parametrize("lacking", [never, late])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("cut", [0, 1, 5, 11])
def test_wherever_it_is_copied_it_goes_on_with_the_same_bits(
    way: str, rule: dict[str, Any], lacking: Callable[[int, int], bool], cut: int
) -> None:
    straight = MetaplasticAdam(made(), 0.02, weight_decay=1e-3, **rule)
    advance(straight, 0, cut, lacking)
    other = COPIES[way](straight)
    assert same(everything(other), everything(straight))
    before = everything(straight)
    advance(other, cut, 14, lacking)
    assert same(everything(straight), before), "the copy shares nothing"
    advance(straight, cut, 14, lacking)
    assert same(everything(other), everything(straight)) and not same(before, everything(straight))


def test_the_rule_is_part_of_the_state() -> None:
    ends = {}
    for k, rule in enumerate(RULES):
        (group,) = (optimiser := MetaplasticAdam(made(), 0.02, **rule)).state_dict()["param_groups"]
        assert {name: group[name] for name in rule} == rule
        advance(optimiser, 0, 6, never)
        ends[k] = everything(optimiser)[0]
    assert not any(same(ends[a], ends[b]) for a in ends for b in range(a)), "the gates are told apart"


def test_a_loaded_state_has_the_type_of_its_parameters_and_stays_its_own() -> None:
    first = MetaplasticAdam(made(dtype=torch.float64), meta=2.0)
    advance(first, 0, 3, never)
    second = MetaplasticAdam(made(), meta=2.0)
    kept = first.state_dict()
    sealed = deepcopy(kept)
    second.load_state_dict(kept)
    for p, state in second.state.items():
        assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {p.dtype} == {torch.float32}
        assert state["step"].dtype == torch.float32 and state["steps"] == 3
    advance(second, 3, 6, never)
    assert same(kept, sealed), "training after loading leaves what was loaded alone"
    third = MetaplasticAdam(made(dtype=torch.float64), meta=2.0)
    third.load_state_dict(deepcopy(sealed))
    assert all(third.state[p]["exp_avg"].dtype == torch.float64 for p in third.state)


@pytest.mark.parametrize("old", [torch.optim.Adam, torch.optim.SGD])
def test_the_state_of_another_optimiser_is_refused_and_changes_nothing(old: Any) -> None:
    optimiser = MetaplasticAdam(made(), meta=2.0)
    advance(optimiser, 0, 2, never)
    before = everything(optimiser)
    with pytest.raises(UserError, match="state of another optimiser: its groups have no gate"):
        optimiser.load_state_dict(old(made(), 0.1).state_dict())
    assert same(everything(optimiser), before)


def test_a_state_with_other_groups_is_refused() -> None:
    optimiser, a, b = MetaplasticAdam(made(), meta=2.0), *made(((2, 2), (3,)))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimiser.load_state_dict(MetaplasticAdam([{"params": [a]}, {"params": [b]}]).state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimiser.load_state_dict(MetaplasticAdam([a, b]).state_dict())


# --- groups ---


@GATED
def test_a_group_that_is_added_is_trained_as_if_it_had_been_there(rule: dict[str, Any]) -> None:
    """With defaults for what it does not say; before its first gradient nothing of it counts."""
    first, last = made()[:3], made()[3:]
    grown, whole = MetaplasticAdam(first, 0.02, **rule), MetaplasticAdam(made(), 0.02, **rule)
    advance(grown, 0, 4, never)
    grown.add_param_group({"params": last})
    assert {name: grown.param_groups[1][name] for name in rule} == rule and grown.param_groups[1]["lr"] == 0.02
    advance(grown, 4, 9, never)
    advance(whole, 0, 9, lambda k, t: k >= 3 and t < 4)
    assert all(same(a, b) for a, b in zip(everything(grown)[:2], everything(whole)[:2], strict=True))
    copy = COPIES["pickle"](grown)
    copy.add_param_group({"params": made(((2, 2),)), "meta": 1.0})
    assert copy.param_groups[2]["gate"] == rule["gate"]
    advance(copy, 9, 10, never)


def test_groups_have_options_of_their_own() -> None:
    """Every group follows its own options as an optimiser of its own would."""
    told: list[dict[str, Any]] = [
        {"lr": 0.1, "gate": "growing", "meta": 4.0},
        {"betas": (0.5, 0.9), "gate": "both", "meta": 1.0},
        {"weight_decay": 0.3},
        {"gate": "shuffled", "seed": 5, "meta": 2.0},
    ]
    shapes = ((3, 4),) * 4
    together, alone = made(shapes), made(shapes)
    one = MetaplasticAdam([{"params": [p], **own} for p, own in zip(together, told, strict=True)], 0.01, meta=0.5)
    defaults = {"lr": 0.01, "betas": (0.9, 0.999), "weight_decay": 0.0, "meta": 0.5, "gate": "shrinking", "seed": 0}
    assert {**one.defaults} == defaults
    for group, own in zip(one.param_groups, told, strict=True):
        assert {name: group[name] for name in defaults} == {**defaults, **own}
    advance(one, 0, 6, never)
    for k in range(3):  # the shuffle is drawn by place
        other = MetaplasticAdam([alone[k]], **{"lr": 0.01, "meta": 0.5, **told[k]})
        for t in range(6):
            alone[k].grad = torch.randn(3, 4, generator=generator(t, f"gradient {k}")) + 0.5
            other.step()
        assert torch.equal(alone[k], together[k]), k


@pytest.mark.parametrize("kind", ["list", "generator", "names", "one tensor"])
def test_parameters_come_as_torch_takes_them(kind: str) -> None:
    one = made(((3, 4),))
    given: dict[str, Any] = {
        "list": one,
        "generator": (p for p in one),
        "names": [("w", p) for p in one],
        "one tensor": [{"params": one[0]}],
    }
    optimiser = MetaplasticAdam(given[kind], meta=1.0)
    before = one[0].detach().clone()
    advance(optimiser, 0, 2, never)
    assert optimiser.param_groups[0]["params"][0] is one[0] and not torch.equal(before, one[0])


def test_impossible_parameters_are_refused_as_by_torch() -> None:
    p, q = made(((3, 4), (2,)))
    with pytest.raises(ValueError, match="empty parameter list"):
        MetaplasticAdam([])
    with pytest.raises(ValueError, match="more than one parameter group"):
        MetaplasticAdam([{"params": [p]}, {"params": [q, p]}])
    with pytest.raises(TypeError):
        MetaplasticAdam(p)
    with pytest.raises(ValueError, match="non-leaf"):
        MetaplasticAdam([p * 2])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        twice = MetaplasticAdam([p, p], meta=1.0)
    assert any("duplicate parameters" in str(one.message) for one in told)
    advance(twice, 0, 3, never)
    assert p.isfinite().all()
    with pytest.raises(UserError, match="complex"):
        MetaplasticAdam([nn.Parameter(torch.ones(2, dtype=torch.complex64))])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -0.1}, "lr = -0.1: must be a number at least 0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"betas": (0.9, 1.0)}, "betas = 1.0: must be a number between 0 and 1"),
        ({"betas": (-0.1, 0.9)}, "betas = -0.1"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0"),
        ({"meta": -1.0}, "meta = -1.0"),
        ({"gate": "none"}, "gate = 'none': allowed are"),
        ({"seed": "x"}, "seed = 'x': must be a whole number"),
        ({"amsgrad": True}, "amsgrad = True: only torch's Adam has it"),
        ({"maximize": True}, "maximize = True: only torch's Adam has it"),
        ({"eps": 1e-3}, "eps = 0.001: only torch's Adam has it"),
    ],
)
def test_impossible_options_are_refused_in_one_line_wherever_they_are_told(wrong: dict[str, Any], message: str) -> None:
    optimiser = MetaplasticAdam(made(((3, 4),)))
    told: list[Callable[[], Any]] = [
        lambda: MetaplasticAdam([{"params": made(), **wrong}]),
        lambda: optimiser.add_param_group({"params": made(((2, 2),)), **wrong}),
    ]
    told += [] if {*wrong} & {"amsgrad", "maximize", "eps"} else [lambda: MetaplasticAdam(made(), **wrong)]
    for make in told:
        with pytest.raises(UserError) as caught:
            make()
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert len(optimiser.param_groups) == 1, "a group that is refused is not there"
    advance(optimiser, 0, 1, never)


# --- gradients that lack, and odd parameters ---


@GATED
def test_a_parameter_follows_its_own_steps_whatever_others_have(rule: dict[str, Any]) -> None:
    """Those without a gradient stay as they are, have no state, and are corrected for the steps that they made."""
    rule = {**rule, "gate": "both" if rule["gate"] == "shuffled" else rule["gate"]}  # a shuffle is drawn by place
    p, q = made(((3, 4), (3, 4)))
    optimiser, alone = MetaplasticAdam([p, q], 0.02, **rule), MetaplasticAdam([r := nn.Parameter(q.detach().clone())])
    alone.param_groups[0] |= {"lr": 0.02, **rule}
    for t in range(9):
        g = 1e-8 * (torch.randn(3, 4, generator=generator(t, "small")) + 0.5)  # so small that epsilon counts
        p.grad, q.grad, r.grad = torch.ones(3, 4), g if t % 3 == 2 else None, g
        was = q.detach().clone()
        optimiser.step()
        if t % 3 == 2:
            alone.step()
        else:
            assert torch.equal(q, was) and (q in optimiser.state) == (t > 2)
    assert torch.equal(q, r) and optimiser.state[q]["steps"] == 3 and optimiser.state[p]["steps"] == 9


def test_a_step_without_any_gradient_does_nothing() -> None:
    optimiser = MetaplasticAdam(made(), meta=1.0, weight_decay=0.5)
    before = everything(optimiser)
    optimiser.step()
    assert same(everything(optimiser), before)
    advance(optimiser, 0, 2, never)
    before = everything(optimiser)
    optimiser.zero_grad()
    assert all(p.grad is None for group in optimiser.param_groups for p in group["params"])
    optimiser.step()
    assert same(everything(optimiser), before)


ODD: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.randn(3, 4, generator=generator(1, "odd")).t(),
    "channels last": lambda: torch.randn(2, 3, 4, 5, generator=generator(1, "odd")).to(
        memory_format=torch.channels_last
    ),
    "strided": lambda: torch.randn(4, 6, generator=generator(1, "odd"))[:, ::2],
    "empty": lambda: torch.empty(0, 3),
}


@GATED
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("gradient", ["like it", "contiguous"])
def test_where_numbers_lie_in_memory_does_not_matter(odd: str, gradient: str, rule: dict[str, Any]) -> None:
    p = nn.Parameter(ODD[odd]())
    q = nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
    first, second = (MetaplasticAdam([one], 0.02, **rule) for one in (p, q))
    for t in range(5):
        g = torch.randn(p.shape, generator=generator(t, "odd gradient")) + 0.5
        p.grad = torch.empty_like(p).copy_(g) if gradient == "like it" else g.clone()
        q.grad = g
        first.step()
        second.step()
    torch.testing.assert_close(p.detach(), q.detach(), atol=1e-6, rtol=1e-5)
    assert p.stride() == ODD[odd]().stride()


@GATED
def test_types_may_be_mixed(rule: dict[str, Any]) -> None:
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float64)
    mixed = [made(dtype=dtype)[k] for k, dtype in enumerate(kinds)]
    apart = [made(dtype=dtype)[k] for k, dtype in enumerate(kinds)]
    groups = MetaplasticAdam([{"params": [p]} for p in apart], 0.02, **rule)
    one = MetaplasticAdam(mixed, 0.02, **rule)
    advance(one, 0, 5, never)
    advance(groups, 0, 5, never)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(mixed, apart, strict=True))
    double, exact = made(dtype=torch.float64)[:1], MetaplasticAdam(made(dtype=torch.float64)[:1], 0.02, **rule)
    advance(exact, 0, 5, never)
    assert torch.equal(exact.param_groups[0]["params"][0], mixed[0]) and not torch.equal(double[0], mixed[0])


def test_sparse_gradients_are_refused() -> None:
    (p,) = made(((3, 4),))
    p.grad = torch.ones(3, 4).to_sparse()
    with pytest.raises(UserError, match="sparse"):
        MetaplasticAdam([p]).step()


# --- closures, hooks, step sizes ---


def test_a_closure_gives_its_loss_back_with_gradients_switched_on() -> None:
    (p,) = made(((3, 4),))
    optimiser = MetaplasticAdam([p], 0.01, meta=1.0)

    def loss() -> Any:
        optimiser.zero_grad()
        value = p.square().sum()
        value.backward()
        return value

    wanted = float(p.detach().square().sum())
    with torch.no_grad():
        assert float(optimiser.step(loss)) == wanted > float(p.detach().square().sum())
    assert optimiser.step() is None


def test_hooks_are_called_once_a_step_whoever_has_stepped_before() -> None:
    torch.optim.Adam(made(), 0.1)  # torch prepares a class at its first instance
    optimiser, called = MetaplasticAdam(made(), meta=1.0), []
    optimiser.register_step_pre_hook(lambda *_: called.append("before"))
    optimiser.register_step_post_hook(lambda *_: called.append("after"))
    handle = register_optimizer_step_post_hook(lambda *_: called.append("all"))
    try:
        advance(optimiser, 0, 2, never)
    finally:
        handle.remove()
    assert called == ["before", "after", "all"] * 2
    optimiser.register_state_dict_pre_hook(lambda *_: called.append("asked"))
    optimiser.register_state_dict_post_hook(lambda _, state: {**state, "more": 1})
    optimiser.register_load_state_dict_pre_hook(lambda _, state: {k: v for k, v in state.items() if k != "more"})
    optimiser.register_load_state_dict_post_hook(lambda *_: called.append("loaded"))
    state = optimiser.state_dict()
    assert state["more"] == 1 and called[-1] == "asked"
    optimiser.load_state_dict(state)
    assert called[-1] == "loaded"


def test_the_step_size_may_be_a_tensor_and_scheduled() -> None:
    ends = []
    for lr in (0.02, torch.tensor(0.02)):
        optimiser = MetaplasticAdam(made(), lr, meta=2.0)
        schedule = StepLR(optimiser, 2, 0.5)
        for t in range(6):
            advance(optimiser, t, t + 1, never)
            schedule.step()
        assert float(optimiser.param_groups[0]["lr"]) == pytest.approx(0.0025)
        ends.append(everything(optimiser)[0])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    still, before = MetaplasticAdam(made(), 0.0, meta=2.0), made()
    advance(still, 0, 3, never)
    assert all(torch.equal(a, b) for a, b in zip(everything(still)[0], before, strict=True))
    with pytest.raises(UserError, match="lr = "):
        MetaplasticAdam(made(), torch.tensor(-1.0))


def test_f_meta_is_what_the_added_group_is_weakened_by() -> None:
    (p,) = made(((3, 4),))
    optimiser = MetaplasticAdam(made(((2, 2),)), 0.01, betas=(0.0, 0.0))
    optimiser.add_param_group({"params": [p], "meta": 2.0, "gate": "both"})
    old, p.grad = p.detach().clone(), torch.ones(3, 4)
    optimiser.step()
    torch.testing.assert_close(old - p.detach(), 0.01 * f_meta(2.0, old), atol=1e-6, rtol=1e-5)
