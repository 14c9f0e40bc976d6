"""How the convolutions of chapter 4 were made: `python -m cllib.pretraining_conv [CIFAR-10'S FOLDER]` makes them again.

They learn to classify CIFAR-10 under a head that is thrown away; whoever continues, on other images, keeps them frozen.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from cllib.datasets import cifar
from cllib.datasets.files import cache_folder, writable_folder, write_atomic
from cllib.datasets.labelled import Labelled
from cllib.errors import whole, within
from cllib.models.conv_front import FEATURES, FILE, ConvFront
from cllib.models.networks import logits_of
from cllib.randomness import generator, seeded
from cllib.streams.base import inputs

PAD = 4  # pixels on every side, mirrored, before a crop (the original repeats the edge as well)


@dataclass(frozen=True)
class ConvPretraining:
    """Adam with a cosine schedule on crops and mirror images, drawn anew in every epoch.

    hidden: width of the two layers on top. `PUBLISHED` is the original's recipe, with five times the epochs.
    """

    epochs: int = 20
    batch_size: int = 256
    step_size: float = 1e-3
    cosine: bool = True
    hidden: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "hidden"):
            whole(name, getattr(self, name), 1)
        within("step_size", self.step_size, 0)
        whole("seed", self.seed, 0)


PUBLISHED = ConvPretraining(epochs=100, step_size=1e-4, cosine=False, hidden=2000)


def pretrain(data: Labelled, how: ConvPretraining, progress: bool = True) -> tuple[ConvFront, float]:
    """The convolutions, and the accuracy of the whole network on the test images."""
    with seeded(how.seed, "pretraining"):
        front = ConvFront("cifar10")
        wide = how.hidden
        head = (nn.Linear(FEATURES, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU())
        network = nn.Sequential(front, *head, nn.Linear(wide, data.classes))
        optimiser = torch.optim.Adam(network.parameters(), how.step_size)
        steps = how.epochs * (len(data.train_y) // how.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for epoch in tqdm(range(how.epochs), desc="pretraining the convolutions", disable=not progress):
            learn(network, optimiser, schedule, data, how, epoch)
    right = [logits_of(network, inputs(part)).argmax(-1) for part in data.test_x.split(500)]
    return front.eval(), float((torch.cat(right) == data.test_y).double().mean())


def learn(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Any,
    data: Labelled,
    how: ConvPretraining,
    epoch: int,
) -> None:
    """One epoch; images left over at its end are not used."""
    network.train()
    draws = generator(how.seed, f"pretraining {epoch}")
    order = torch.randperm(len(data.train_y), generator=draws)
    for rows in order.split(how.batch_size)[: len(order) // how.batch_size]:
        optimiser.zero_grad()
        x = shifted(inputs(data.train_x[rows]), draws)
        F.cross_entropy(network(x), data.train_y[rows]).backward()
        optimiser.step()
        if how.cosine:
            schedule.step()


def shifted(x: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[B, C, H, W]` cropped from mirrored borders, half of them mirrored."""
    b, _, h, w = x.shape
    x = F.pad(x, [PAD] * 4, mode="reflect")
    corner = torch.randint(2 * PAD + 1, (2, b, 1), generator=draws)
    mirrored = torch.rand(b, 1, generator=draws) < 0.5
    rows, columns = corner[0] + torch.arange(h), corner[1] + torch.arange(w)  # [B, H], [B, W]
    columns = torch.where(mirrored, columns.flip(1), columns)
    cut = x.permute(0, 2, 3, 1)[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return cut.permute(0, 3, 1, 2).contiguous()


def make(data: Labelled, how: ConvPretraining, path: Path) -> float:
    """Pretrain, write the weights in half precision with how they were made, and return the accuracy.

    Raises UserError if it cannot write.
    """
    writable_folder(path.parent)
    front, accuracy = pretrain(data, how)
    told = {"recipe": json.dumps(asdict(how)), "data": data.name, "images": str(len(data.train_y))}
    told |= {"accuracy on the test images": f"{accuracy:.3f}", "torch": torch.__version__}
    record = {"record": json.dumps(told, sort_keys=True)}  # one entry: safetensors writes several in random order
    halves = {name: value.half() if value.is_floating_point() else value for name, value in front.state_dict().items()}
    write_atomic(path, save(halves, record))
    return accuracy


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else cache_folder()
    images = cifar.load("cifar10", where, download=True)
    print(f"{make(images, ConvPretraining(), FILE):.3f} of CIFAR-10's test images")
