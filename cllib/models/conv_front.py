"""The convolutions that stand before brain-inspired replay (van de Ven et al. 2020): C3-5x16, made on CIFAR-10.

    5 x [conv 3x3 -> BatchNorm -> ReLU], channels 16-32-64-128-256, strides 1-2-2-2-2; the last one convolution alone,

so an image [3, 32, 32] becomes 256 x 2 x 2 = 1024 features, signed reals. Ours are shipped; `cllib.pretraining_conv`
made them.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from cllib.datasets.files import hash_arrays
from cllib.errors import UserError, flag, one_of
from cllib.models.networks import MLP
from cllib.models.weights import DATA, stored
from cllib.randomness import seeded

CHANNELS, SIDE = (16, 32, 64, 128, 256), 32
STRIDES = (1, 2, 2, 2, 2)
FEATURES = CHANNELS[-1] * (SIDE // 2**4) ** 2
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}
OWN, RANDOM = "own", "random"
FILE = DATA / "conv_front.safetensors"


class ConvFront(nn.Module):
    """Images `[B, 3, 32, 32]` in [0, 1] to features `[B, 1024]`.

    Args:
        statistics: whose mean and spread pixels are normalized with; the original continues on CIFAR-100's.

    Attributes:
        told: what its features depend on, in words and a hash.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, statistics: str = "cifar100") -> None:
        super().__init__()
        widths = (3, *CHANNELS)
        steps = zip(pairwise(widths), STRIDES, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride, padding=1) for (a, b), stride in steps)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in CHANNELS[:-1])
        for name, values in zip(("mean", "std"), STATISTICS[statistics], strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.statistics, self.told = statistics, ""

    def train(self, mode: bool = True) -> "ConvFront":
        """Training mode; what is frozen stays in evaluation mode, so that its statistics do not move."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def normalized(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] as the first layer sees them."""
        return (x - self.mean) / self.std

    def features(self, x: Tensor) -> Tensor:
        """Normalized images `[B, 3, 32, 32]` to features `[B, 1024]`."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=False):
            x = torch.relu(norm(convolution(x)))
        return self.convolutions[-1](x).flatten(1)  # [B, 256, 2, 2] to [B, 1024]

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.normalized(x))


@dataclass(frozen=True)
class ConvMLP:
    """Fully connected ReLU layers on the convolutions, a classifier alone: what the compared methods train.

    weights: see `conv_front`; freeze: keep the convolutions as they are, and let them stand before the stream.
    """

    hidden: tuple[int, ...] = (400, 400)
    weights: str = OWN
    freeze: bool = False

    def __post_init__(self) -> None:
        MLP(self.hidden)
        flag("freeze", self.freeze)

    def front(self, shape: tuple[int, ...]) -> ConvFront | None:
        """The convolutions that stand before the stream, where they are frozen."""
        check_images(shape)
        return conv_front(self.weights).requires_grad_(False) if self.freeze else None

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """For images, or, where the convolutions stand before the stream, for their features."""
        head = MLP(self.hidden).build((FEATURES,), classes)
        if self.freeze and shape == (FEATURES,):
            return head
        check_images(shape)
        front = conv_front(self.weights).requires_grad_(not self.freeze)
        return nn.Sequential(front, head)

    def fingerprint(self) -> str:
        """Hash of the weights it starts from."""
        return conv_front(self.weights).told


def check_images(shape: tuple[int, ...]) -> None:
    """Raise UserError for samples that the convolutions cannot take."""
    if shape != (3, SIDE, SIDE):
        raise UserError(f"stem = 'conv': takes images [3, {SIDE}, {SIDE}], not {list(shape)}")


def conv_front(weights: str = OWN, statistics: str = "cifar100") -> ConvFront:
    """The convolutions with their weights, in evaluation mode.

    weights: "own" (shipped), "random", or a file: safetensors by our names, or a torch
    checkpoint {"state": ...} by the original's names (convLayer1.conv.weight ...). Raises UserError for a file that
    holds something else.
    """
    one_of("statistics", statistics, tuple(STATISTICS))
    with seeded(0, "conv front"):
        front = ConvFront(statistics)
    if weights != RANDOM:
        path = FILE if weights == OWN else Path(weights)
        state = stored(path) if path.suffix == ".safetensors" else from_original(path)
        load(front, state, path)
    front.told = f"conv front, {statistics} statistics, weights {hash_arrays(*front.state_dict().values())}"
    return front.eval()


def load(front: ConvFront, state: dict[str, Tensor], path: Path) -> None:
    """Take over weights, stored as halves or floats. UserError names the first tensor that does not fit."""
    for name, own in front.state_dict().items():
        if name not in state and not name.endswith("num_batches_tracked"):
            raise UserError(f"weights = {str(path)!r}: {name} is missing")
        if name in state and state[name].shape != own.shape:
            raise UserError(f"weights = {str(path)!r}: {name} is {list(state[name].shape)}, must be {list(own.shape)}")
    front.load_state_dict({name: state.get(name, own).to(own.dtype) for name, own in front.state_dict().items()})


def from_original(path: Path) -> dict[str, Tensor]:
    """The original's checkpoint by our names. Raises UserError if it cannot be read as one."""
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)["state"]
        pairs = [(name.removeprefix("convLayer").split("."), value) for name, value in kept.items()]
        kinds = {"conv": "convolutions", "bn": "norms"}
        return {f"{kinds[kind]}.{int(layer) - 1}.{leaf}": value for (layer, kind, leaf), value in pairs}
    except Exception as error:  # torch raises what it likes for a file that is none of its own
        raise UserError(f"weights = {str(path)!r}: not a checkpoint of these convolutions ({error})") from error
