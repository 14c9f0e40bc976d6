"""Networks in two parts: g below makes representations of samples, f above makes logits of representations.

`Split` is what a learner that replays representations asks for; `as_split` makes one of any network, with nothing
below.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cllib.models.networks import classifier, only_logits

# Called in every layer with attention, as noise(rows, heads, tokens): which rows are disturbed, and by what,
# `[k]`, `[k, h, N, N]`; None: none.
Noise = Callable[[int, int, int], tuple[Tensor, Tensor] | None]


class Above(nn.Module):
    """f: representations `[B, ...]` to logits, in three steps, so that each can be done once for many uses.

    grows: whether classes are added by `grow`, so that there are as many logits as classes have come, in that order;
    grown: how often they were.
    """

    grows = False

    @property
    def grown(self) -> int:
        return 0

    def body(self, r: Tensor, noise: Noise | None = None) -> Tensor:
        """All that fine-tuning leaves alone: r to z."""
        raise NotImplementedError

    def embed(self, z: Tensor, first: int | None = None) -> Tensor:
        """Features `[B, ...]`; first: those of the first so many tasks alone, where each has its own."""
        raise NotImplementedError

    def answer(self, e: Tensor) -> Tensor:
        """Logits `[B, C]` of features."""
        raise NotImplementedError

    def tuned(self) -> list[nn.Module]:
        """What fine-tuning on the memory changes."""
        raise NotImplementedError

    def grow(self, classes: int) -> None:
        """Make room for one more task of so many classes, with random numbers from torch's global generator."""

    def hold(self, held: bool) -> None:
        """Freeze what belongs to old tasks alone, or free it again."""

    def diverge(self, e: Tensor) -> Tensor | None:
        """Logits `[B, n + 1]` of "old, or which of the n new classes"; None where no such head is."""
        return None

    def forward(self, r: Tensor, noise: Noise | None = None, first: int | None = None) -> Tensor:
        return self.answer(self.embed(self.body(r, noise), first))


class Split(nn.Module):
    """x to logits, f(g(x)).

    classes: of the stream, whether they have come or not; detached: no gradient reaches g, frozen or not.
    """

    def __init__(self, below: nn.Module, above: Above, classes: int = 0, detached: bool = False) -> None:
        super().__init__()
        self.below, self.above, self.classes, self.detached = below, above, classes, detached

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.above(self.represent(x))
        return logits

    def represent(self, x: Tensor) -> Tensor:
        """r = g(x); without a graph where nothing in g learns, unless the samples themselves need one."""
        quiet = not x.requires_grad and (self.detached or not learns(self.below))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not quiet):
            r: Tensor = self.below(x)
        return r

    def train(self, mode: bool = True) -> "Split":
        """Training mode, but of a frozen g."""
        super().train(mode)
        self.below.train(mode and learns(self.below))
        return self


def learns(module: nn.Module) -> bool:
    """Whether any parameter needs a gradient."""
    return any(p.requires_grad for p in module.parameters())


class Whole(Above):
    """Any network as f; its logits are of all classes, in their order, and its classifier is what can be tuned."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def body(self, r: Tensor, noise: Noise | None = None) -> Tensor:
        return r

    def embed(self, z: Tensor, first: int | None = None) -> Tensor:
        return only_logits(self.network, self.network(z))

    def answer(self, e: Tensor) -> Tensor:
        return e

    def tuned(self) -> list[nn.Module]:
        return [classifier(self.network)]


def as_split(network: nn.Module) -> Split:
    """The network itself where it has two parts, else one of which g does nothing: samples are representations."""
    return network if isinstance(network, Split) else Split(nn.Identity(), Whole(network))
