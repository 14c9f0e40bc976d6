"""Numbers of chapter 4 that follow from its rules alone, for the sizes of the paper: nothing is trained."""

from math import log

import torch
from torch import nn

from cllib.exaggeration import BASE_TEMPERATURE, released_js
from cllib.ledger import Fact
from cllib.models.conv_front import FEATURES, ConvFront
from cllib.models.replay_vae import VAE, ReplayVAE
from cllib.pretraining_conv import PUBLISHED
from cllib.results import Record
from cllib.streams.protocols import PROTOCOLS

Counts = dict[str, float]
CIFAR_10 = 50_000  # training images
PARTS = {
    "encoder": ("enc1", "enc2"),
    "classifier": ("classifier",),
    "mean": ("mu",),
    "log-variance": ("logvar",),
    "decoder, first layer": ("dec1",),
    "decoder, second layer": ("dec2",),
    "decoder, output": ("out",),
}


def network(name: str, classes: int, shape: tuple[int, ...]) -> VAE:
    """The network of a published experiment, without values."""
    how = PROTOCOLS[name]
    told = {"stem": "conv", "reconstruction": "mse", "weights": "random"} if how.conv else {}
    with torch.device("meta"):
        return ReplayVAE(hidden=how.hidden, latent=how.latent, gates=0.0, **told).build(shape, classes)  # type: ignore[arg-type]


def size(*modules: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def architecture() -> Counts:
    """Parameters of the published networks."""
    cifar = network("CIFAR-100", 100, (FEATURES,))
    with torch.device("meta"):
        front = ConvFront()
    made: Counts = {"CIFAR-100: all": size(cifar, front), "CIFAR-100: of them learn": size(cifar)}
    made["CIFAR-100: frozen convolutions"] = size(front)
    made |= {f"CIFAR-100: {part}": size(*(getattr(cifar, n) for n in names)) for part, names in PARTS.items()}
    made["CIFAR-100: prior"] = cifar.means.numel() + cifar.logvars.numel()
    kept = [b for name, b in front.named_buffers() if name.startswith("norms")]
    made["convolutions with statistics and counters"] = size(front) + sum(b.numel() for b in kept)
    made["split MNIST: all"] = size(network("split MNIST", 10, (1, 28, 28)))
    made["permuted MNIST: all"] = size(network("permuted MNIST", 10, (1, 32, 32)))
    made["features of an image"] = FEATURES
    made["what KL is divided by, CIFAR-100"] = cifar.pixels
    made["weight of KL to reconstruction, CIFAR-100"] = FEATURES / cifar.pixels
    return made


def training() -> Counts:
    """Steps."""
    made: Counts = {f"{name}: steps of a run": PROTOCOLS[name].tasks * PROTOCOLS[name].iters for name in PUBLISHED_RUNS}
    how = PUBLISHED
    made["pretraining: steps as described"] = how.epochs * (CIFAR_10 // how.batch_size)
    made["pretraining: steps with half the batch"] = how.epochs * (CIFAR_10 // (how.batch_size // 2))
    return made


PUBLISHED_RUNS = ("split MNIST", "permuted MNIST", "CIFAR-100")


def exaggeration() -> Counts:
    """How small the released losses are, and how large one of them is."""
    equal = torch.zeros(4, 1, PROTOCOLS["CIFAR-100"].latent)
    least = float(released_js(*equal))
    batch = PROTOCOLS["CIFAR-100"].batch
    return {
        "released JS of equal distributions, a dimension": least / equal.shape[-1],
        "largest repulsion, z = 100": 1 / least,
        "... times 1e-6, in 1e-8": 1e-6 / least * 1e8,
        "contrastive loss of random projections, B = 256": log(2 * batch - 1) / BASE_TEMPERATURE,
    }


def counted() -> dict[str, Counts]:
    """All of it, by group."""
    return {"architecture": architecture(), "training": training(), "exaggeration, counted": exaggeration()}


def minutes(record: Record, profile: str) -> list[Fact]:
    """How long a run took, where it was one that a published time is about, from its first step to its last."""
    for name, label in TIMED:
        how = PROTOCOLS[name]
        asked = (record.experiment, record.stream, record.label) == ("main", f"{name}, class", label)
        full = record.learner.get("iterations") == how.iters and record.learner.get("batch_size") == how.batch
        if asked and record.whole and full:
            taken = record.seconds / record.n / 60
            return [Fact("times", f"{name}, {label}: minutes of a run", profile, (taken,), exact=True)]
    return []


TIMED = (("split MNIST", "BI-R"), ("CIFAR-100", "BI-R + SI"))  # README files of the original and of the extension
