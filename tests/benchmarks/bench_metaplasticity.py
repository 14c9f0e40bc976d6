"""Prints what consolidation costs: a step of the optimiser, and a training step beside the original's way of doing it.

CPU time of the process, one thread, best of interleaved rounds: what else the machine does only adds. Run by
`make bench`.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cllib.metaplasticity import MetaplasticAdam, groups
from cllib.models.binary import BinaryMLP, binary_weights
from cllib.models.vit import ViT
from cllib.recipes import Recipe
from cllib.streams import Experience, Stream
from cllib.training import train

ROUNDS, META, RATE, DECAY = 7, 1.35, 0.005, 1e-7
BATCH, SAMPLES = 100, 10_000
SHAPE, CLASSES = (1, 28, 28), 10
SMALL_BVIT = ViT("bvit", 28, patch=7, dim=64, depth=2, heads=4, mlp_ratio=2.0)


def best_ms(work: dict[str, Callable[[], int]], rounds: int = ROUNDS) -> dict[str, float]:
    """CPU ms a step of each piece of work, which returns how many steps it made."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            begin = time.process_time()
            steps = call()
            times[name].append((time.process_time() - begin) / steps * 1e3)
    return {name: min(values) for name, values in times.items()}


# --- a step of the optimiser ---


def stepping(network: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], steps: int) -> Callable[[], int]:
    """Steps with gradients that stay as they are."""
    optimiser = make(network)
    for p in network.parameters():
        p.grad = 1e-3 * torch.randn_like(p)

    def work() -> int:
        for _ in range(steps):
            optimiser.step()
        return steps

    work()  # moments, and memory to work in
    return work


def optimisers() -> None:
    """The optimiser's step beside torch's own, on the parameters of several networks."""
    kinds: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "Adam, foreach": lambda net: torch.optim.Adam(net.parameters(), RATE, weight_decay=DECAY, foreach=True),
        "Adam, fused": lambda net: torch.optim.Adam(net.parameters(), RATE, weight_decay=DECAY, fused=True),
        "metaplastic": lambda net: MetaplasticAdam(groups(net, (META,)), RATE, weight_decay=DECAY),
        "same, m = 0": lambda net: MetaplasticAdam(groups(net, (0.0,)), RATE, weight_decay=DECAY),
    }
    configs = {f"784-{w}-{w}-10": (BinaryMLP(hidden=(w, w)), 2**25 // (784 * w + w * w)) for w in (256, 1024, 2048)}
    configs["bvit, 72,074 parameters"] = SMALL_BVIT, 100  # type: ignore[assignment]
    print(
        f"\nCPU ms a step, {DECAY:g} weight decay\n{'':24}",
        *(f"{name:>14}" for name in kinds),
        "  times foreach, fused",
    )
    for name, (config, steps) in configs.items():
        work = {kind: stepping(config.build(SHAPE, CLASSES), make, max(8, steps)) for kind, make in kinds.items()}
        found = best_ms(work)
        ratios = [found["metaplastic"] / found[kind] for kind in ("Adam, foreach", "Adam, fused")]
        print(f"{name:24}", *(f"{found[kind]:14.3f}" for kind in kinds), f"{ratios[0]:15.2f} {ratios[1]:6.2f}")


# --- a training step ---


def fabricated() -> tuple[Tensor, Tensor]:
    """Random images of MNIST's shape; only the time they take matters."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (SAMPLES, *SHAPE), generator=draws, dtype=torch.uint8), torch.arange(SAMPLES) % CLASSES


class Pictures(Dataset):
    """Images one by one, each made a picture and then a tensor, as torchvision's MNIST does."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.transform = x[:, 0], y, transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(np.asarray(self.x[index]), mode=None)), int(self.y[index])


class Unfused(torch.optim.Optimizer):
    """The equations of the paper's optimiser, tensor by tensor, operation by operation."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], gated: set[str]) -> None:
        self.m = {id(p): META if name in gated else 0.0 for name, p in named}
        super().__init__([p for _, p in named], {"lr": RATE})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["step"], state["u"], state["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
            u, v, t = state["u"], state["v"], state["step"]
            g = p.grad.add(p, alpha=DECAY)
            u.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            scale = v.sqrt().add_(1e-8)
            a = RATE * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
            if p.dim() == 1:  # biases and norms
                p.addcdiv_(u, scale, value=-a)
                continue
            shrinks = torch.mul(p.sign(), u) > 0
            f = torch.ones_like(p) - torch.tanh(self.m[id(p)] * p.abs()).square()
            p.addcdiv_(torch.where(shrinks, f * u, u), scale, value=-a)


def original(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[], int]:
    """An epoch as the original makes it: pictures, and hidden weights swapped with their signs in every step."""
    loader = DataLoader(Pictures(x, y), BATCH, shuffle=True, num_workers=0)
    weights = binary_weights(network)
    optimiser = Unfused([*network.named_parameters()], set(weights))
    hidden = {name: w.detach().clone() for name, w in weights.items()}
    plain = as_floats(network)

    def work() -> int:
        for images, labels in loader:
            for name, w in weights.items():
                w.data = hidden[name].sign()
            optimiser.zero_grad()
            F.cross_entropy(plain(images), labels).backward()
            for name, w in weights.items():
                w.data = hidden[name]
            optimiser.step()
            for name, w in weights.items():
                hidden[name] = w.data.clone()
        return len(loader)

    return work


def as_floats(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network with its weights as they stand there: signs, put in place by whoever calls it."""

    def forward(x: Tensor) -> Tensor:
        for name, layer in network.named_children():
            x = F.linear(x, layer.weight) if name.startswith("fc") else layer(x)
        return x

    return forward


def ours(config: BinaryMLP, x: Tensor, y: Tensor) -> Callable[[], int]:
    """An epoch in the loop, no tests and nothing kept."""
    part = Experience(x, y, tuple(range(CLASSES)))
    stream = Stream("bench", CLASSES, (part,), (), ())
    recipe = Recipe(
        network=config, optimizer="metaplastic", meta=(META,), step_size=RATE, weight_decay=DECAY, batch_size=BATCH
    )
    learner = recipe.build(stream, 0)

    def work() -> int:
        feed = recipe.feed(stream, 0)
        train(learner, stream, feed, progress=False, track_every=SAMPLES)
        return feed.steps(0)

    return work


def loops() -> None:
    """A training step of the loop beside the original's."""
    x, y = fabricated()
    print(f"\nCPU ms a training step, batches of {BATCH} of {SAMPLES:,} images")
    print(f"{'':24}{'original':>14} {'ours':>14}  times")
    for width in (256, 1024):
        config = BinaryMLP(hidden=(width, width))
        found = best_ms(
            {"original": original(config.build(SHAPE, CLASSES), x, y), "ours": ours(config, x, y)}, rounds=3
        )
        name = f"784-{width}-{width}-10"
        ratio = found["original"] / found["ours"]
        print(f"{name:24}{found['original']:14.2f} {found['ours']:14.2f} {ratio:6.2f}")


def main() -> None:
    torch.set_num_threads(1)
    optimisers()
    loops()


if __name__ == "__main__":
    main()
