"""A classifier that can dream: the symmetric variational autoencoder of brain-inspired replay (van de Ven et al. 2020).

Its encoder is also the classifier; its decoder makes, from noise, samples of the classes it knows ("replay through
feedback"); a mixture of Gaussians, modes of its own for every class, says where in latent space those lie; and every
class (or task) may use only some of the decoder's hidden units ("gates"). Symbols are those of the chapter.
"""

from dataclasses import dataclass
from math import log, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import UserError, flag, one_of, whole, within
from cllib.models.conv_front import CHANNELS, FEATURES, OWN, SIDE, STRIDES, ConvFront, check_images, conv_front
from cllib.randomness import generator

PRIORS, ERRORS, STEMS = ("classes", "standard"), ("bce", "saturating bce", "mse"), ("none", "conv")


# --- densities and errors ---


def log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, exp(logvar)) without the constant d/2 log 2 pi, `[..., d]` to `[...]`."""
    return -0.5 * (logvar + (z - mean).square() * (-logvar).exp()).sum(-1)


def log_modes(z: Tensor, means: Tensor, logvars: Tensor) -> Tensor:
    """The same of every z under every mode: z `[B, d]`, means and logvars `[M, d]` to `[B, M]`, as matrix products."""
    precision = (-logvars).exp()
    with torch.autocast("cuda" if z.is_cuda else "cpu", enabled=False):  # differences of large numbers
        square = z.square() @ precision.T - 2 * z @ (means * precision).T  # [B, M]
    return -0.5 * (square + (logvars + means.square() * precision).sum(-1))


def log_prior(z: Tensor, means: Tensor, logvars: Tensor, weights: Tensor) -> Tensor:
    """log sum_c q_c mean_j N(z; m_cj, s_cj): z `[B, d]`, modes `[C, J, d]`, q: weights `[B, C]` or `[C]` to `[B]`."""
    classes, modes = means.shape[:2]
    each = log_modes(z, means.flatten(0, 1), logvars.flatten(0, 1)).unflatten(-1, (classes, modes))  # [B, C, J]
    return (each + (weights.log() - log(modes))[..., None]).flatten(1).logsumexp(-1)


def log_prior_of(z: Tensor, means: Tensor, logvars: Tensor) -> Tensor:
    """log mean_j N(z; m_j, s_j): z `[B, d]`, the modes of each sample's own class `[B, J, d]` to `[B]`."""
    each = log_normal(z[:, None], means, logvars)  # [B, J]
    return each[:, 0] if each.shape[1] == 1 else each.logsumexp(1) - log(each.shape[1])


def divergence_from_standard(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)), `[..., d]` to `[...]`."""
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(-1)


def recon_error(out: Tensor, target: Tensor, kind: str) -> Tensor:
    """R, a sample each, `[B, ...]` to `[B]`, means over units: "bce", out being logits, or "mse", half the square.

    "saturating bce", as released: from sigmoids, which from a logit of 17 on are 1 in single precision; where that is
    wrong the loss is 100, torch's bound of a logarithm, and has no gradient.
    """
    if kind == "mse":
        return 0.5 * (out - target).square().flatten(1).mean(1)
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(out, target, reduction="none").flatten(1).mean(1)
    with torch.autocast(out.device.type, enabled=False):
        return F.binary_cross_entropy(torch.sigmoid(out), target, reduction="none").flatten(1).mean(1)


# --- the network ---


class Seen(NamedTuple):
    """What the encoder makes of a batch: h2 `[B, H]`, logits `[B, C]`, mu and logvar of the posterior `[B, z]`."""

    hidden: Tensor
    logits: Tensor
    mu: Tensor
    logvar: Tensor


class VAE(nn.Module):
    """Samples `[B, *shape]` to logits `[B, C]`, and noise to samples; with convolutions of its own where `front` is.

    Attributes:
        shape: of what is replayed: samples as they come.
        means, logvars: of the prior's modes, `[C, J, z]`; gate1, gate2: `[K, H]` of 0 and 1, a row a context, which is
            a class, or a task where `by_task`; empty where nothing is gated.
    """

    gate1: Tensor
    gate2: Tensor

    def __init__(self, config: "ReplayVAE", shape: tuple[int, ...], classes: int, front: ConvFront | None) -> None:
        super().__init__()
        inputs, wide, z = FEATURES if front else prod(shape), config.hidden, config.latent
        self.config, self.shape, self.classes = config, shape, classes
        self.enc1, self.enc2 = nn.Linear(inputs, wide), nn.Linear(wide, wide)
        self.classifier = nn.Linear(wide, classes)
        self.mu, self.logvar = nn.Linear(wide, z), nn.Linear(wide, z, bias=False)
        self.dec1, self.dec2, self.out = nn.Linear(z, wide), nn.Linear(wide, wide), nn.Linear(wide, inputs)
        self.front, self.deconvolutions = front, None if front is None else Deconvolutions()
        draws = generator(torch.initial_seed(), "prior")  # so that layers start the same with any prior and any gates
        modes = (2, classes, config.modes, z) if config.prior == "classes" else (2, 0)
        self.means, self.logvars = (nn.Parameter(part) for part in torch.randn(modes, generator=draws))
        for k, gate in enumerate(config.draw_gates(classes), 1):
            self.register_buffer(f"gate{k}", gate)
        self.train()

    @property
    def by_task(self) -> bool:
        """Whether gates belong to tasks, not to classes."""
        return self.config.tasks is not None

    @property
    def gated(self) -> bool:
        """Whether there are gates."""
        return self.gate1.numel() > 0

    # samples to logits

    def look(self, x: Tensor) -> Seen:
        """Encode samples `[B, *shape]`, new or replayed."""
        h = self.hidden(x)
        return Seen(*(part.float() for part in (h, self.classifier(h), self.mu(h), self.logvar(h))))

    def hidden(self, x: Tensor) -> Tensor:
        """h2, `[B, H]`."""
        f = (x if self.front is None else self.front(x)).flatten(1)  # [B, d0]
        return torch.relu(self.enc2(torch.relu(self.enc1(f))))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.hidden(x))
        return logits

    def consolidated(self) -> list[nn.Parameter]:
        """What synaptic intelligence holds: encoder and classifier, and convolutions that learn."""
        parts = [self.enc1, self.enc2, self.classifier, *([] if self.front is None else [self.front])]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    # noise to samples

    def gates_of(self, context: Tensor) -> tuple[Tensor, Tensor] | None:
        """Gates `[B, H]` of both layers for contexts, `[B]` whole numbers, or weights of them, `[B, K]`."""
        if not self.gated:
            return None
        if context.dim() == 2:
            return context @ self.gate1, context @ self.gate2
        return self.gate1[context], self.gate2[context]

    def decode(self, z: Tensor, gates: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Latent values `[B, z]` to `[B, *shape]`, which `shown` makes samples of; gates act before the ReLU."""
        a = self.dec1(z)
        g = torch.relu(a if gates is None else gates[0] * a)
        a = self.dec2(g)
        x: Tensor = self.out(torch.relu(a if gates is None else gates[1] * a)).float()
        return x.view(-1, *self.shape) if self.deconvolutions is None else self.deconvolutions(x)

    def shown(self, out: Tensor) -> Tensor:
        """What `decode` gives as samples: in [0, 1] where errors are binary cross-entropies."""
        if self.front is not None:
            return out * self.front.std + self.front.mean
        return out if self.config.reconstruction == "mse" else torch.sigmoid(out)

    def error(self, out: Tensor, target: Tensor) -> Tensor:
        """R of each sample, `[B]`; of images before convolutions on normalized ones."""
        target = target if self.front is None else self.front.normalized(target)
        return recon_error(out, target, self.config.reconstruction)

    def draw(self, noise: Tensor, label: Tensor, mode: Tensor) -> Tensor:
        """Latent values of classes: z = m + exp(s / 2) noise; label, mode: `[B]`. Standard normal: the noise itself."""
        if self.config.prior == "standard":
            return noise
        return self.means[label, mode] + (0.5 * self.logvars[label, mode]).exp() * noise

    def divergence(self, seen: Seen, z: Tensor, label: Tensor | None, weights: Tensor | None) -> Tensor:
        """V of each sample, `[B]`: log posterior minus log prior at z, or, of a standard normal prior, in closed form.

        label: the classes, `[B]`, or weights: of the classes, `[B, C]` or `[C]`.
        """
        if self.config.prior == "standard":
            return divergence_from_standard(seen.mu, seen.logvar)
        posterior = log_normal(z, seen.mu, seen.logvar)
        if label is not None:
            return posterior - log_prior_of(z, self.means[label], self.logvars[label])
        assert weights is not None
        return posterior - log_prior(z, self.means, self.logvars, weights)

    @property
    def pixels(self) -> int:
        """What V is divided by: the numbers of an image, also where features of one are replayed."""
        return self.config.kl_scale or (3 * SIDE**2 if self.config.stem == "conv" else prod(self.shape))


class Deconvolutions(nn.Module):
    """Features `[B, 1024]` to normalized images `[B, 3, 32, 32]`: the convolutions mirrored. Ours, not published."""

    def __init__(self) -> None:
        super().__init__()
        widths = (*reversed(CHANNELS), 3)
        layers: list[nn.Module] = []
        for k, stride in enumerate(reversed(STRIDES)):
            layers += [nn.ConvTranspose2d(widths[k], widths[k + 1], 3, stride, 1, output_padding=stride - 1)]
            layers += [nn.BatchNorm2d(widths[k + 1]), nn.ReLU()] if k < len(STRIDES) - 1 else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        images: Tensor = self.layers(torch.relu(x).view(-1, CHANNELS[-1], SIDE // 16, SIDE // 16))
        return images


# --- how it is said ---


@dataclass(frozen=True)
class ReplayVAE:
    """Raises UserError at construction for what cannot be.

    hidden: H, width of all hidden layers; latent: z. prior: "classes", a mixture of `modes` (J) Gaussians for every
    class, or "standard". gates: share of hidden units that a context shuts (dg_prop), 0 for no gates; tasks: contexts
    are tasks, so many of them; None: classes. reconstruction: "bce" or "saturating bce" (pixels in [0, 1])
    or "mse" (features), see `recon_error`.

    stem: "conv" for the frozen convolutions of `conv_front`, with these weights; internal: their features are
    replayed, which is what lets them stand before the stream, or else images, decoded by mirrored convolutions.
    freeze: keep the convolutions as they are (not internal: they may learn). kl_scale: what V is divided by; None: the
    numbers of a sample, or of an image where its features are replayed.
    """

    hidden: int = 400
    latent: int = 100
    prior: str = "classes"
    modes: int = 1
    gates: float = 0.8
    tasks: int | None = None
    reconstruction: str = "bce"
    stem: str = "none"
    weights: str = OWN
    internal: bool = True
    freeze: bool = True
    kl_scale: int | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "latent", "modes"):
            whole(name, getattr(self, name), 1)
        one_of("prior", self.prior, PRIORS)
        within("gates", self.gates, 0, 0.99)
        for name in ("tasks", "kl_scale"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        one_of("reconstruction", self.reconstruction, ERRORS)
        one_of("stem", self.stem, STEMS)
        for name in ("internal", "freeze"):
            flag(name, getattr(self, name))
        if self.stem == "conv" and self.reconstruction != "mse":
            raise UserError(
                f"reconstruction = {self.reconstruction!r}: only for values in [0, 1]; stem = 'conv' needs 'mse'"
            )
        if self.stem == "conv" and self.internal and not self.freeze:
            raise UserError("freeze = False: what is replayed internally must be frozen; set internal = False")

    def front(self, shape: tuple[int, ...]) -> ConvFront | None:
        """The convolutions that stand before the stream; None where there are none, or they belong to the network."""
        if self.stem == "none":
            return None
        check_images(shape)
        return conv_front(self.weights).requires_grad_(False) if self.internal else None

    def build(self, shape: tuple[int, ...], classes: int) -> VAE:
        """For samples of this shape: images, or features where the convolutions stand before the stream."""
        if self.stem == "none" or (self.internal and shape == (FEATURES,)):
            return VAE(self, shape, classes, None)
        check_images(shape)
        return VAE(self, shape, classes, conv_front(self.weights).requires_grad_(not self.freeze))

    def draw_gates(self, classes: int) -> tuple[Tensor, Tensor]:
        """G of both hidden layers: `[K, H]`, 0 with probability `gates`; no rows where nothing is gated."""
        contexts = 0 if self.gates == 0 else self.tasks or classes
        draws = generator(torch.initial_seed(), "gates")
        first, second = (torch.rand(2, contexts, self.hidden, generator=draws) >= self.gates).float()
        return first, second

    def fingerprint(self) -> str:
        """Hash of the weights it starts from."""
        return "none" if self.stem == "none" else conv_front(self.weights).told
