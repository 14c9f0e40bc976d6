"""A-GEM (Chaudhry et al. 2019): the sample's gradient, projected so that it does not climb on the replayed items."""

import torch
from torch import Tensor

from cllib.learners.agem import project
from cllib.learners.heads.replay import Replay
from cllib.losses import xent_gradient
from cllib.optim import Gradients, dense


class AGEM(Replay):
    """Steps with the projected gradient of the current sample alone; the reference loss is always cross-entropy."""

    def combine(self, x: Tensor, y: Tensor, gradients: Gradients) -> Gradients:
        parameters = self.head.parameters
        reference = self._flat(self._reference(self.now(self.draws)), parameters)
        flat = project(self._flat(gradients, parameters), reference)
        pieces = flat.split([p.numel() // self.runs for p in parameters.values()], 1)
        return {name: piece.reshape(p.shape) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}

    def _reference(self, index: Tensor) -> Gradients:
        items = self.store.read(index)
        return self.head.learn(items["x"], lambda logits: xent_gradient(logits, items["y"]) / index.shape[1])[1]

    def _flat(self, gradients: Gradients, parameters: dict[str, Tensor]) -> Tensor:
        """All gradients of a run in one row: `[R, P]`."""
        return torch.cat([dense(gradients[name], p).reshape(self.runs, -1) for name, p in parameters.items()], 1)
