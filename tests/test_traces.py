"""Traces of the original programs, in `golden`: runs of their code on cases of their own, and the setting that agrees.

The programs are named in each file: the Memory Head and the Continual Neural Unit (mh, cnu: one layer; stream: a whole
stream with a competitor), the binarized networks with metaplastic Adam (lab), and the transformers (vit). Numbers are
printed to six digits at most.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.chapters import settings
from cllib.datasets import fashion_6k
from cllib.datasets import points as plane
from cllib.datasets.points import Points
from cllib.learners.heads import LearnerConfig, build
from cllib.losses import hinge, xent, xent_gradient
from cllib.metaplasticity import MetaplasticAdam, groups
from cllib.models.classic import ClassicConfig
from cllib.models.memory_head import MemoryHead, MemoryHeadConfig, MemoryHeadLayer
from cllib.models.norms import norm_state, set_norm_state
from cllib.models.vit import FixedBinaryLinear, Transformer, ViT
from cllib.optim import SGD, Adam
from cllib.streams.base import Experience, Stream

GOLDEN = Path(__file__).parent / "golden"


def traces(*kinds: str) -> list[str]:
    return sorted(path.stem for kind in kinds for path in GOLDEN.glob(f"{kind}_*.json"))


def trace(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return told


def near(found: Tensor, wanted: Any, atol: float) -> None:
    torch.testing.assert_close(
        found.detach().float().flatten(), torch.tensor(wanted, dtype=torch.float32).flatten(), atol=atol, rtol=0
    )


# --- one layer of the Memory Head ---

NAMES = {
    "key_mem_units": "units",
    "delta": "top",
    "gamma_alpha": "sharpness",
    "beta_k": "key_step",
    "tau_alpha": "match_threshold",
    "tau_mu": "use_threshold",
    "tau_eta": "age_threshold",
    "upd_m": "memory_update",
    "upd_k": "key_update",
    "psi_fn": "query",
}


def layer_config(told: dict[str, Any], **changes: Any) -> MemoryHeadConfig:
    given = {NAMES.get(name, name): value for name, value in told["original_arguments"].items()}
    given.setdefault("distance", "cosine")
    bug = given["distance"] == "cosine" and told["order"] == "POST"
    return MemoryHeadConfig(**{**given, "when": told["order"], "threshold_bug": bug, **changes})


def samples(told: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return torch.tensor(told["x"]).view(told["x_shape"]), torch.tensor(told["y"]).view(told["x_shape"][:2])


def closed_form(told: dict[str, Any], config: MemoryHeadConfig) -> tuple[list[float], list[int], MemoryHead]:
    mh = MemoryHead(told["inputs"], told["outputs"], [config], [0])
    mh.bank.keys.copy_(torch.tensor(told["K0"]).view(mh.bank.keys.shape))
    mh.bank.memories.copy_(torch.tensor(told["M0"]).view(mh.bank.memories.shape))
    kind = {"sgd": SGD, "adam": Adam}[told["optimiser"]]
    optimiser, losses, scrambles = kind(torch.tensor([told["lr"]]), torch.tensor([told["weight_decay"]])), [], []
    for x, y in zip(*(t.unsqueeze(1) for t in samples(told)), strict=True):
        logits, gradients = mh.learn(x, lambda o, y=y: xent_gradient(o, y) / y.shape[1])
        optimiser.step(mh.parameters, gradients)
        losses.append(float(xent(logits, y).mean()))
        scrambles.append(int(mh.bank.scrambles.sum()))
    return losses, scrambles, mh


def autograd(told: dict[str, Any], config: MemoryHeadConfig) -> tuple[list[float], list[int], MemoryHeadLayer]:
    layer = MemoryHeadLayer(told["inputs"], told["outputs"], config)
    layer.keys.data.copy_(torch.tensor(told["K0"]).view(layer.keys.shape))
    layer.memories.data.copy_(torch.tensor(told["M0"]).view(layer.memories.shape))
    kind: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[told["optimiser"]]
    optimiser, losses, scrambles = kind(layer.parameters(), told["lr"], weight_decay=told["weight_decay"]), [], []
    for x, y in zip(*samples(told), strict=True):
        optimiser.zero_grad()
        loss = F.cross_entropy(layer(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        scrambles.append(int(layer.scrambles.sum()))
    return losses, scrambles, layer


@pytest.mark.parametrize("run", [closed_form, autograd])
@pytest.mark.parametrize("name", traces("mh", "cnu"))
def test_a_layer_agrees_where_a_batch_counts_its_winners_after_the_keys_moved(name: str, run: Any) -> None:
    told = trace(name)
    losses, scrambles, made = run(told, layer_config(told))
    wanted, x = told["expected"], samples(told)[0]
    near(torch.tensor(losses), wanted["losses"], 5e-6)
    assert scrambles == wanted["scrambles"]
    bank = made.bank if isinstance(made, MemoryHead) else made._bank()
    near(bank.keys, wanted["K"], 5e-6)
    near(bank.memories, wanted["M"], 5e-6)
    assert bank.usage.flatten().tolist() == wanted["mu"] and bank.age.flatten().tolist() == wanted["eta"]
    said = made.logits(x[-1][None]) if isinstance(made, MemoryHead) else made.eval()(x[-1])
    near(said, wanted["eval_logits_last_batch"], 5e-6)
    before = run(told, layer_config(told, counted="before"))[1]
    assert before != wanted["scrambles"], "ours, the named variant, scrambles at other times"


# --- a stream, with a competitor ---


def released_order(points: Points) -> np.ndarray:
    """The released CDI order: sorted by domain, then each by class, both by a sort that is not stable.

    int8: numpy sorts it by the same steps on every machine.
    """
    y, domain = points.y.numpy().astype(np.int8), points.domain.numpy().astype(np.int8)
    by_domain = np.argsort(domain)
    parts = [by_domain[domain[by_domain] == d] for d in range(plane.DOMAINS)]
    return np.concatenate([part[np.argsort(y[part])] for part in parts])


def released_stream() -> Stream:
    """MODES-CDI as it was shipped."""
    parts = plane.split(plane.modes())
    cut = {}
    for name in ("train", "test"):
        points = parts[name].take(released_order(parts[name]))
        key = points.y + plane.CLASSES * points.domain
        cut[name] = tuple(
            Experience(points.x[key == k], points.y[key == k], (int(k) % plane.CLASSES,), int(k) // plane.CLASSES)
            for k in key.unique()
        )
    return Stream("modes-cdi", plane.CLASSES, cut["train"], cut["test"], ())


def replayed(told: dict[str, Any], loss: str) -> tuple[np.ndarray, list[float]]:
    """Accuracies, `[8, 8]`, and the loss of every sample, with the original's replays."""
    asked, start, stream = told["options"], told["start"], released_stream()
    config = LearnerConfig(
        ClassicConfig(asked["model"], asked["hidden"], asked["bias"]),
        {"ER_reservoir": "er_reservoir"}[asked["competitor"]],
        asked["beta_m"],
        asked["weight_decay"],
        asked["optimizer"],
        loss,
        asked["buffer_size"],
        asked["buffer_batch_size"],
    )
    learner: Any = build(stream, [config], [0])
    for name, layer in (("hidden", "net.0"), ("output", "net.2")):
        weights = learner.head.parameters[name]
        shape = weights.shape[1], weights.shape[2] - 1
        weights[0, :, :-1] = torch.tensor(start[f"{layer}.weight"]).view(shape)
        weights[0, :, -1] = torch.tensor(start[f"{layer}.bias"])
    learner.slots, learner.draws = torch.tensor(told["slots"])[None], torch.tensor(told["draws"])[None]
    rows, losses = [], []
    for experience in stream.experiences:
        for x, y in zip(experience.x, experience.y, strict=True):
            losses.append(float(hinge(learner.observe(x.view(1, 1, -1), y.view(1, 1)), y.view(1, 1))))
        rows.append([float((learner.predict(e.x)[0].argmax(-1) == e.y).float().mean()) for e in stream.tests])
    return np.array(rows), losses


def test_replay_agrees_where_the_hinge_is_summed() -> None:
    told = trace("stream_er_hinge")
    wanted = told["expected"]
    matrix, losses = replayed(told, told["options"]["loss"])
    near(torch.tensor(losses[:20]), wanted["first_losses"], 5e-6)
    near(torch.tensor(losses[-20:]), wanted["last_losses"], 5e-6)
    assert (abs(matrix - wanted["CCM"]) < 1e-4).all()
    averaged = replayed(told, "hinge_mean")[0]
    assert (abs(averaged - wanted["CCM"]) > 1e-4).sum() == 12, "averaged, as the named variant does"


# --- binarized networks with metaplastic Adam ---


def fashion(count: int, test: bool) -> tuple[Tensor, Tensor]:
    data = fashion_6k.load()
    x, y = (data.test_x, data.test_y) if test else (data.train_x, data.train_y)
    return x[:count].flatten(1).float() / 255, y[:count]


def permuted(x: Tensor, task: int) -> Tensor:
    return x[:, np.random.RandomState((3, 4)[task]).permutation(784)]


def original_start(case: dict[str, Any]) -> list[Tensor]:
    """Initial weights, layer by layer, from torch's own generator as the original draws them."""
    torch.manual_seed(case["seed"])
    layers = [nn.Linear(a, b, bias=False) for a, b in zip((784, *case["hidden"]), (*case["hidden"], 10), strict=True)]
    for layer in layers:
        if case["init"] == "uniform":
            nn.init.uniform_(layer.weight, -case["width"] / 2, case["width"] / 2)
        else:
            nn.init.normal_(layer.weight, 0, case["width"])
    return [layer.weight.detach() for layer in layers]


def accuracy(network: nn.Module, task: int) -> float:
    x, y = fashion(500, test=True)
    with torch.no_grad():
        return 100 * float((network.eval()(permuted(x, task)).argmax(1) == y).float().mean())


def permutations_learned(case: dict[str, Any], network: Any) -> tuple[list[float], list[list[float]]]:
    """Two permutations in turn: the loss of every step, and accuracies after each, every task with its own norms."""
    losses, kept, rows = [], [], []
    x, y = fashion(600, test=False)
    for task in range(2):
        parts = groups(network, case["meta"], "matrices")
        rate = case["lr"] * case.get("gamma", 1.0) ** -task
        optimiser = MetaplasticAdam(parts, rate, weight_decay=case["decay"])
        draws = torch.Generator().manual_seed(case["seed"] + task)
        for _ in range(case["epochs"]):
            for index in torch.randperm(600, generator=draws).split(50):
                loss = F.cross_entropy(network.train()(permuted(x, task)[index]), y[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
        kept.append(norm_state(network))
        row = []
        for j in range(2):
            set_norm_state(network, kept[j] if j < task and case["scenario"] == "task" else kept[-1])
            row.append(accuracy(network, j))
        set_norm_state(network, kept[-1])
        rows.append(row)
    return losses, rows


@pytest.mark.parametrize("name", traces("lab"))
def test_networks_agree_with_the_norms_of_their_kind_and_torchs_sign_of_activations(name: str) -> None:
    told = trace(name)
    case, wanted = told["case"], told["expected"]
    p = settings("02_metaplasticity", net=case["net"], hidden_layers=case["hidden"], init_width=case["width"])
    network: Any = p.network().build((784,), 10)  # norm = None: what the released programs take for this net
    assert network.norm1.track_running_stats == (case["norm1"] == "running")
    for k, start in enumerate(original_start(case), 1):
        network.get_submodule(f"fc{k}").weight.data.copy_(start)
    losses, accuracies = permutations_learned(case, network)
    near(torch.tensor(losses), wanted["losses"], 1e-5)
    near(torch.tensor(accuracies), wanted["R_percent"], 1e-3)
    for name, size in wanted["mean_abs"].items():
        own = network.get_parameter(name.removeprefix("layers.").replace("bn", "norm"))
        assert float(own.detach().abs().mean()) == pytest.approx(size, abs=2e-6)
    near(network.fc1.weight[0, 300:320], wanted["first_row_fc1"], 1e-5)  # the first columns are of empty pixels
    near(network.get_submodule(f"fc{len(case['hidden']) + 1}").weight.flatten()[:64], wanted["fc_last"], 1e-5)


# --- transformers as published ---


def ours(name: str) -> str:
    """Our name of a parameter of the released transformer."""
    for theirs, mine in (("cls_token", "cls"), ("pos_embed", "pos"), ("patch_embed.proj", "patches"), (".mlp.", ".")):
        name = name.replace(theirs, mine)
    return re.sub(r"\.h?bn([12])\.", r".fc\1.", name.replace(".layer_norm", ""))


def released_transformer(told: dict[str, Any]) -> Transformer:
    asked = told["arguments"]
    sizes = {"image_size": asked["img_size"], "patch": asked["patch_size"], "dim": asked["embed_dim"]}
    sizes |= {"depth": asked["depth"], "heads": asked["n_heads"]}
    config = ViT(told["net"], **sizes, mlp_ratio=asked["mlp_ratio"], as_published=True)
    network = config.build((asked["in_chans"], asked["img_size"], asked["img_size"]), asked["n_classes"])
    for name, values in told["initial"].items():
        own = network.get_parameter(ours(name))
        own.data.copy_(torch.tensor(values).view(own.shape))
    for layer in network.modules():
        if isinstance(layer, FixedBinaryLinear):
            layer.first.copy_(layer.weight.detach().sign())
    return network


@pytest.mark.parametrize("name", traces("vit"))
def test_transformers_as_published_agree_with_torchs_sign(name: str) -> None:
    told = trace(name)
    network = released_transformer({**told, "net": name.rsplit("_", 1)[1]})
    x, y = torch.rand(10, 1, 16, 16, generator=torch.Generator().manual_seed(5)), torch.arange(10) % 5
    optimiser, losses = torch.optim.Adam(network.parameters(), 0.002, weight_decay=1e-4), []
    for _ in range(25):
        optimiser.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    near(torch.tensor(losses), told["expected"]["losses"], 1e-5)
