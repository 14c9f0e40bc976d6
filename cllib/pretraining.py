"""How the small backbones that ship with the book were made: `python -m cllib.pretraining tiny4` makes one again.

They learn to tell 100 handwritten digits apart, each seen in ever new surroundings, none of which comes back in a
stream: a stand-in for ImageNet.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from cllib.datasets import mini_core
from cllib.datasets.files import writable_folder, write_atomic
from cllib.errors import one_of, whole, within
from cllib.models.latent_vit import BACKBONES, RANDOM, Cut, LatentViT
from cllib.models.networks import logits_of
from cllib.models.weights import DATA
from cllib.randomness import generator, seeded

OWN = tuple(name for name, size in BACKBONES.items() if size.pretrained is None)
CLASSES = 100


@dataclass(frozen=True)
class Pretraining:
    """AdamW with a cosine schedule on pictures that are drawn anew in every epoch.

    plain: epochs in white on black before surroundings come in, without which nothing is learned for a long time.
    """

    backbone: str = "tiny"
    epochs: int = 50
    plain: int = 6
    pictures: int = 6000
    batch_size: int = 50
    step_size: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("backbone", self.backbone, OWN)
        for name in ("epochs", "pictures", "batch_size"):
            whole(name, getattr(self, name), 1)
        for name in ("step_size", "weight_decay"):
            within(name, getattr(self, name), 0)
        whole("plain", self.plain, 0)
        whole("seed", self.seed, 0)

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.pictures // self.batch_size)


def pretrain(how: Pretraining, progress: bool = True) -> tuple[dict[str, Tensor], float]:
    """The weights by timm's names, and the accuracy on as many new pictures."""
    blocks = BACKBONES[how.backbone].blocks
    still: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
    config = LatentViT(how.backbone, depth=blocks, replay_block=None, weights=RANDOM, **still)
    with seeded(how.seed, "pretraining"):
        network = config.whole(CLASSES)
        optimiser = torch.optim.AdamW(network.parameters(), how.step_size, weight_decay=how.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps)
        for epoch in tqdm(range(how.epochs), desc=f"pretraining {how.backbone}", disable=not progress):
            learn(network, optimiser, schedule.step, how, epoch)
    x, y = pictures(how, how.epochs)
    right = torch.cat([logits_of(network, part).argmax(-1) for part in x.split(500)]) == y
    return named(network), float(right.double().mean())


def pictures(how: Pretraining, epoch: int) -> tuple[Tensor, Tensor]:
    """The pictures of an epoch, `[N, 3, S, S]` in [0, 1], and what they show, `[N]`."""
    x, y = mini_core.others(how.pictures, how.seed * 10_000 + epoch, plain=epoch < how.plain)
    return x.float() / 255, y


def learn(
    network: Cut, optimiser: torch.optim.Optimizer, after: Callable[[], Any], how: Pretraining, epoch: int
) -> None:
    """One epoch. after: called after every step."""
    network.train()
    x, y = pictures(how, epoch)
    order = torch.randperm(len(y), generator=generator(how.seed, f"pretraining order {epoch}"))
    for rows in order.split(how.batch_size):
        optimiser.zero_grad()
        F.cross_entropy(network(x[rows]), y[rows]).backward()
        optimiser.step()
        after()


def named(network: Cut) -> dict[str, Tensor]:
    """The weights of a whole network by timm's names, the classifier left out."""
    lower, upper = network.lower, network.upper
    state = {
        "cls_token": lower.cls,
        "pos_embed": lower.pos,
        "norm.weight": upper.norm.weight,
        "norm.bias": upper.norm.bias,
    }
    state |= {f"patch_embed.proj.{name}": p for name, p in lower.patches.state_dict().items()}
    blocks = [*lower.blocks, *upper.blocks]
    state |= {f"blocks.{k}.{name}": p for k, block in enumerate(blocks) for name, p in block.state_dict().items()}
    return {name: p.detach().clone() for name, p in state.items()}


def make(how: Pretraining, path: Path) -> float:
    """Pretrain, write the weights with how they were made, and return the accuracy. UserError if it cannot write."""
    writable_folder(path.parent)
    state, accuracy = pretrain(how)
    told = {
        "recipe": json.dumps(asdict(how)),
        "accuracy on new pictures": f"{accuracy:.3f}",
        "torch": torch.__version__,
    }
    record = {"record": json.dumps(told, sort_keys=True)}  # one entry: safetensors writes several in random order
    write_atomic(path, save(state, record))
    return accuracy


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = Pretraining(backbone=sys.argv[1])
    print(f"{make(chosen, DATA / f'vit_{chosen.backbone}.safetensors'):.3f} of {CLASSES} on new pictures")
