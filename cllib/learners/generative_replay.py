"""Generative replay, brain-inspired (van de Ven et al. 2020) or with a generator of its own (Shin et al. 2017).

What is replayed is what the network is shown: features where frozen convolutions stand before the stream, else samples
as they come. With a `models.replay_vae.VAE` for network the network itself dreams (replay through feedback).
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib import exaggeration
from cllib.errors import UserError, flag, one_of, whole, within
from cllib.exaggeration import DRAWS, Exaggeration
from cllib.learners.naive import Losses, Naive
from cllib.learners.si import PathPenalty
from cllib.models.networks import classes_of, only_logits
from cllib.models.replay_vae import VAE, ReplayVAE, Seen
from cllib.randomness import generator, seeded
from cllib.streams.base import Experience

REPLAYS = ("generative", "current", "none")
PURPOSES = ("latent noise", "replay classes", "replay noise", "exaggeration")
PROJECTED = 100  # length of what the contrastive loss compares


@dataclass(frozen=True)
class GenerativeReplaySettings:
    """replay: "generative"; "current", the new samples again, which with `distill` is learning without forgetting; or
    "none". generator: a network of its own that dreams; None: the network itself where it can, else `SEPARATE`.

    replay_size: samples replayed in a step; None: as many as are new. distill: replayed samples are taught the
    teacher's scores at this temperature T, else its answer alone. recon_weight, kl_weight, class_weight: of R, V and P
    or D. si: c, strength of synaptic intelligence (0: none); damping: its epsilon; lowest: bound of the importances,
    None as published, where they may be negative. exaggerate: see `Exaggeration`.
    """

    replay: str = "generative"
    generator: ReplayVAE | None = None
    replay_size: int | None = None
    distill: bool = True
    temperature: float = 2.0
    recon_weight: float = 1.0
    kl_weight: float = 1.0
    class_weight: float = 1.0
    si: float = 0.0
    damping: float = 0.1
    lowest: float | None = None
    exaggerate: Exaggeration = field(default_factory=Exaggeration)

    def __post_init__(self) -> None:
        one_of("replay", self.replay, REPLAYS)
        if self.generator is not None and not isinstance(self.generator, ReplayVAE):
            raise UserError(f"generator = {self.generator!r}: must be a ReplayVAE, or None")
        if self.replay_size is not None:
            whole("replay_size", self.replay_size, 1)
        flag("distill", self.distill)
        within("temperature", self.temperature, 1e-3)
        for name in ("recon_weight", "kl_weight", "class_weight", "si"):
            within(name, getattr(self, name), 0)
        within("damping", self.damping, 1e-12)
        if self.lowest is not None:
            within("lowest", self.lowest, 0, 0)
        if not isinstance(self.exaggerate, Exaggeration):
            raise UserError(f"exaggerate = {self.exaggerate!r}: must be an Exaggeration")
        if self.exaggerate.on and not (self.distill and self.replay == "generative"):
            raise UserError("exaggerate: needs replay = 'generative' and distill = True, for it goes by the scores")


SEPARATE = ReplayVAE(prior="standard", gates=0.0)  # the generator of plain generative replay


class Replayed(NamedTuple):
    """A batch of old samples and what the teacher says about them.

    x: `[B, ...]`; scores: its logits, `[B, C]`; q: what is taught, `[B, C]`, 0 for classes that are not; mask: the
    student's outputs that compete, `[C]` or `[B, C]` bool; label: the teacher's answer, `[B]`; task: `[B]`, or None
    where gates do not go by it.
    """

    x: Tensor
    scores: Tensor
    q: Tensor
    mask: Tensor
    label: Tensor
    task: Tensor | None


def distilled(logits: Tensor, q: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """D = -T^2 sum_c q_c log softmax(logits / T)_c over the outputs in the mask, mean over the batch.

    Its minimum is T^2 times the entropy of q, not 0. logits, q: `[B, C]`; mask: `[C]` or `[B, C]` bool.
    """
    logp = (logits / temperature).masked_fill(~mask, -torch.inf).log_softmax(-1).masked_fill(~mask, 0)
    return -(temperature**2) * (q * logp).sum(-1).mean()


class GenerativeReplay(Naive):
    """L = L_new / t + (1 - 1/t) L_old at experience t, L = recon R + kl V + P on new samples, and with D on replayed.

    Old samples are drawn in every step from the network (or generator) as it was at the end of the last experience, and
    labelled by the network as it was then. In the scenario "task" the old tasks take turns: where samples belong to no
    task (a standard prior, the current samples) each is scored under one of them.

    Attributes:
        dreamer: what generates: the network itself, a network of its own, or None.
        kept: share of the last step's replayed samples whose competitor came close enough.
    """

    Settings = GenerativeReplaySettings

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.feedback = isinstance(self.network, VAE) and settings.generator is None
        self.dreamer: VAE | None = self.network if self.feedback else None  # type: ignore[assignment]
        self.teacher: nn.Module | None = None
        self.source: VAE | None = None  # what replayed samples are drawn from
        self.projection: nn.Linear | None = None
        self.blocks: list[list[int]] = []  # classes of the experiences so far, the present one last
        self.learned = 0  # experiences
        self.kept = torch.ones(())
        self.groups = len(self.optimiser.param_groups)  # of the network alone
        self.draws = {purpose: generator(self.seed, purpose) for purpose in PURPOSES}
        self.penalty: PathPenalty | None = None
        if settings.si:
            self.penalty = PathPenalty(self._held(), settings.damping, (settings.lowest, None))
        if self.feedback:
            self._add_projection()

    # --- the contract ---

    def begin(self, experience: Experience) -> None:
        self.blocks.append(list(experience.classes))
        if self.settings.replay == "generative" and self.dreamer is None:
            self._add_dreamer(tuple(experience.x.shape[1:]))
        self._check_dreamer()
        self._tabulate()

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        how: GenerativeReplaySettings = self.settings
        if how.exaggerate.same_noise:
            for purpose in ("latent noise", "replay noise"):
                self.draws[purpose].manual_seed(1)
        old = self._replay(x)
        both = x if old is None else torch.cat([x, old.x])
        if self.dreamer is None:
            logits, losses = self.network(both), {}
        else:
            seen = self.dreamer.look(both)
            logits = seen.logits if self.feedback else self.network(both)
            losses = self._dreaming(seen, both, y, old)
        new = logits[: len(y)]
        losses["pred"] = how.class_weight * self._share(False) * self.cross_entropy(new, y)
        if old is not None:
            taught = logits[len(y) :]
            name, value = "distil_r", distilled(taught, old.q, old.mask, how.temperature)
            if not how.distill:
                name, value = "pred_r", F.cross_entropy(taught.masked_fill(~old.mask, -torch.inf), old.label)
            losses[name] = how.class_weight * self._share(True) * value
        return new, losses

    def correct(self) -> None:
        if self.penalty is not None:
            self.penalty.correct(self._held(), 2 * self.settings.si)

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        if self.penalty is not None:
            self.penalty.follow(self._held())

    def finish(self, experience: Experience) -> None:
        if self.penalty is not None:
            self.penalty.finish(self._held())
        if self.settings.replay != "none":
            self._take()
        self.learned += 1

    def predict(self, x: Tensor, experience: int | None = None) -> Tensor:
        """Logits; those of classes that have not come yet lie below all others, so that they are never the answer."""
        logits = super().predict(x)
        if not self.blocks or self.rivals is not None:
            return logits
        return torch.where(self.active, logits, logits.amin(-1, keepdim=True) - 1)

    def cross_entropy(self, logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """P: over the classes that have come so far, or, where the task is told, over its own."""
        if self.rivals is None:
            logits = only_logits(self.network, logits).masked_fill(~self.active, -torch.inf)
        return super().cross_entropy(logits, y, reduction)

    # --- dreaming ---

    def _share(self, old: bool) -> float:
        """Of a loss: 1/t for new samples, the rest for old ones; all for new ones where nothing is replayed."""
        if not self.learned or self.settings.replay == "none":
            return float(not old)
        return 1 - 1 / (self.learned + 1) if old else 1 / (self.learned + 1)

    def _replay(self, x: Tensor) -> Replayed | None:
        """Old samples and what the teacher says about them."""
        if self.teacher is None or self.settings.replay == "none":
            return None
        count = self.settings.replay_size or len(x)
        with torch.no_grad():
            if self.source is None:
                old = x if self.settings.replay_size is None else x[:count]
                block = torch.arange(len(old), device=x.device) % len(self.widths)
                by_task = self.dreamer is not None and self.dreamer.by_task
                task = torch.full_like(block, self.learned) if by_task else None
            else:
                old, block, task = self.sampled(count)
            scores = self.teacher(old)
            if self.rivals is not None:
                taught = mask = self.members[block]  # [B, C]
            else:
                taught, mask = self.members[0], self.active  # [C]
            told = scores.masked_fill(~taught, -torch.inf)
            label = told.argmax(-1)
            q = (told / self.settings.temperature).softmax(-1)
            if not self.settings.distill:
                q = F.one_hot(label, q.shape[-1]).to(q.dtype)
        return Replayed(old, scores, q, mask, label, task)

    def sampled(self, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Samples of old classes, `[B, ...]`, the block of classes each was drawn from, and, where gates go by them,
        the tasks, `[B]`. In the scenario "task" all old tasks have equally many.
        """
        assert self.source is not None
        device, classes, noise = self.widths.device, self.draws["replay classes"], self.draws["replay noise"]
        blocks = len(self.widths)
        count = -(-count // blocks) * blocks
        block = torch.arange(count, device=device) % blocks
        u = torch.rand(count, generator=classes).to(device)
        label = self.table[block, (u * self.widths[block]).long()]
        mode = torch.randint(self.source.config.modes, (count,), generator=classes).to(device)
        task = None
        if self.source.gated and self.source.by_task:
            drawn = torch.randint(self.learned, (count,), generator=classes).to(device)
            task = torch.where(self.owner[label] < 0, drawn, self.owner[label])
        z = self.source.draw(torch.randn(count, self.source.config.latent, generator=noise).to(device), label, mode)
        x = self.source.shown(self.source.decode(z, self.source.gates_of(label if task is None else task)))
        return x, block, task

    def _dreaming(self, seen: Seen, both: Tensor, y: Tensor, old: Replayed | None) -> Losses:
        """R and V of new and old samples, and what exaggerates."""
        net, how, n = self.dreamer, self.settings, len(y)
        assert net is not None
        noise = torch.randn(seen.mu.shape, generator=self.draws["latent noise"]).to(seen.mu.device)
        z = seen.mu + (0.5 * seen.logvar).exp() * noise
        out = net.decode(z, self._gates(y, old))
        recon = net.error(out, both)
        losses = {"recon": how.recon_weight * self._share(False) * recon[:n].mean()}
        parts = [Seen(*(t[rows] for t in seen)) for rows in (slice(None, n), slice(n, None))]
        scale = how.kl_weight / net.pixels
        losses["variat"] = scale * self._share(False) * net.divergence(parts[0], z[:n], y, None).mean()
        if old is not None:
            label, q = (old.label, None) if not how.distill else (None, old.q)
            losses["recon_r"] = how.recon_weight * self._share(True) * recon[n:].mean()
            losses["variat_r"] = scale * self._share(True) * net.divergence(parts[1], z[n:], label, q).mean()
            losses |= self._exaggerated(parts[1], out[n:], old)
        return losses

    def _gates(self, y: Tensor, old: Replayed | None) -> tuple[Tensor, Tensor] | None:
        """Gates of new samples, by class or task, and of old ones, by what is taught or by task."""
        net = self.dreamer
        assert net is not None
        if not net.gated:
            return None
        pairs = [net.gates_of(torch.full_like(y, self.learned) if net.by_task else y)]
        if old is not None:
            pairs.append(net.gates_of(old.q if old.task is None else old.task))
        first, second = (torch.cat(gates) for gates in zip(*(p for p in pairs if p is not None), strict=True))
        return first, second

    # --- exaggerating ---

    def _exaggerated(self, seen: Seen, out: Tensor, old: Replayed) -> Losses:
        """What is added for replayed samples, all but the contrastive loss with the share of old samples."""
        how: Exaggeration = self.settings.exaggerate
        if not how.on:
            return {}
        scores = old.scores[:, self.columns]
        losses = self._apart(how, seen, out, old.x, scores) if how.repels and len(self.columns) > 1 else {}
        losses = {name: self._share(True) * value for name, value in losses.items()}
        if how.contrastive:
            losses["contr_r"] = how.contrastive * self._contrast(how, seen.hidden, scores)
        return losses

    def _apart(self, how: Exaggeration, seen: Seen, out: Tensor, x: Tensor, scores: Tensor) -> Losses:
        """Repulsion of distributions; repulsion and attraction of reconstructions."""
        net, draws, classes = self.dreamer, self.draws["exaggeration"], scores.shape[1]
        assert net is not None
        who = exaggeration.rivals(scores, how.factor)
        self.kept = who.kept.float().mean()
        order = torch.rand(len(x), generator=draws).to(x.device)
        row, there = exaggeration.one_each(who.own, classes, order)
        losses: Losses = {}
        if how.repulsion:
            if how.pair == "prior":
                mode = torch.randint(net.config.modes, (len(x),), generator=draws).to(x.device)
                label = self.columns[who.other]
                other = net.means[label, mode], net.logvars[label, mode]
                kept = who.kept
            else:
                partner = row[who.other]
                other, kept = (seen.mu[partner], seen.logvar[partner]), who.kept & there[who.other]
            sampling = how.divergence == "true js"
            noise = torch.randn(2, DRAWS if sampling else 0, *seen.mu.shape, generator=draws).to(x.device)
            pushed = exaggeration.repulsion(how, (seen.mu, seen.logvar), other, kept, noise)
            losses["repulsion_r"] = how.repulsion * pushed
        if how.recon_repulsion or how.recon_attraction:
            exemplars = exaggeration.class_means(x, who.own, classes)[0] if how.averaged else x[row]
            away = net.error(out, exemplars[who.other])
            losses["recon_rep_r"] = how.recon_repulsion * exaggeration.mean_inverse(away, who.kept & there[who.other])
            near = net.error(out, exemplars[who.own]).mean() * who.kept.any()  # of all, or of none where nobody is kept
            losses["recon_atr_r"] = how.recon_attraction * near
        return losses

    def _contrast(self, how: Exaggeration, hidden: Tensor, scores: Tensor) -> Tensor:
        """The contrastive loss of two views of every replayed sample, which differ in what dropout leaves of them."""
        assert self.projection is not None
        u = torch.rand(2, *hidden.shape, generator=self.draws["exaggeration"]).to(hidden.device)
        views = (hidden * (u >= how.dropout) / (1 - how.dropout)).flatten(0, 1)  # [2 B, H]
        projected = F.normalize(self.projection(views), dim=-1)
        weights = exaggeration.belonging(scores.argmax(-1), scores, how.targets)
        return exaggeration.contrastive(projected, weights, how.temperature)

    # --- parts ---

    def _check_dreamer(self) -> None:
        """Raise UserError for a generator that cannot do what is asked of it."""
        if self.dreamer is None:
            return
        how, config = self.settings.exaggerate, self.dreamer.config
        if config.tasks is not None and self.learned >= config.tasks:
            raise UserError(f"tasks = {config.tasks}: the stream has more; gates are needed for each")
        if how.repulsion and how.pair == "prior" and config.prior == "standard":
            raise UserError("pair = 'prior': a standard prior has no classes to be repelled from; take 'posterior'")

    def _add_dreamer(self, shape: tuple[int, ...]) -> None:
        """A generator of its own, learning beside the network with the same optimiser."""
        config, device = self.settings.generator or SEPARATE, next(self.network.parameters()).device
        with seeded(self.seed, "generator"):
            self.dreamer = config.build(shape, classes_of(self.network)).to(device)
        self._optimise(self.dreamer)
        self._add_projection()

    def _add_projection(self) -> None:
        """The layer that the contrastive loss looks through."""
        how: Exaggeration = self.settings.exaggerate
        if not how.contrastive or self.dreamer is None:
            return
        with seeded(self.seed, "projection"):
            self.projection = nn.Linear(self.dreamer.config.hidden, PROJECTED).to(self.dreamer.means.device)
        self._optimise(self.projection, {} if how.head_step_size is None else {"lr": how.head_step_size})

    def _optimise(self, module: nn.Module, own: Mapping[str, Any] | None = None) -> None:
        """Let the optimiser take care of another module, with settings of its own; nothing in it consolidates."""
        first = {name: value for name, value in self.optimiser.param_groups[0].items() if name != "params"}
        plain = {"meta": 0.0} if "meta" in first else {}
        learning = [p for p in module.parameters() if p.requires_grad]
        self.optimiser.add_param_group({**first, **plain, **(own or {}), "params": learning})

    def _tabulate(self) -> None:
        """The classes that old samples are drawn from, and those that may be the answer.

        table: `[T, m]`, a row a task where the task is told, else one of all old classes; widths: `[T]`, how many of a
        row count; members: the same as masks, `[T, C]`; active: classes that have come, `[C]`; owner: the task that a
        class came in, `[C]`, -1 where it came in several; columns: all old classes, in order.
        """
        past = self.blocks[: self.learned]
        every = sorted({c for block in past for c in block})
        rows = past if self.rivals is not None else [every]
        count, device = classes_of(self.network), next(self.network.parameters()).device
        longest = max(1, *(len(row) for row in [*rows, []]))
        table = torch.tensor([row + [0] * (longest - len(row)) for row in rows or [[]]], dtype=torch.long)
        members = torch.zeros(len(table), count, dtype=torch.bool)
        for k, row in enumerate(rows):
            members[k, row] = True
        active = torch.zeros(count, dtype=torch.bool)
        active[[c for block in self.blocks for c in block]] = True
        owner = torch.full((count,), -1)
        for k, block in enumerate(past):
            alone = [c for c in block if sum(c in other for other in past) == 1]
            owner[alone] = k
        widths = torch.tensor([len(row) for row in rows or [[]]])
        made = (table, members, active, widths, owner, torch.tensor(every, dtype=torch.long))
        self.table, self.members, self.active, self.widths, self.owner, self.columns = (t.to(device) for t in made)

    def _held(self) -> list[nn.Parameter]:
        """What synaptic intelligence acts on: encoder and classifier, not what only dreams."""
        return self.network.consolidated() if isinstance(self.network, VAE) else self.parameters()

    def _take(self) -> None:
        """Keep network and generator as they are now."""
        self.teacher = taken(self.network, self.teacher)
        if self.settings.replay == "generative":
            self.source = self.teacher if self.feedback else taken(self.dreamer, self.source)  # type: ignore[assignment]

    # --- what is carried along ---

    def parts(self) -> dict[str, list[Tensor]]:
        made = super().parts()
        made |= {name: [*m.parameters(), *m.buffers()] for name, m in self._modules().items() if m is not None}
        if self.penalty is not None:
            made["importance"] = self.penalty.parts()
        return made

    def state_dict(self) -> dict[str, Any]:
        counters = {"learned": self.learned, "blocks": deepcopy(self.blocks), "kept": self.kept.clone()}
        draws = {purpose: draws.get_state() for purpose, draws in self.draws.items()}
        modules = {n: None if m is None else deepcopy(dict(m.state_dict())) for n, m in self._modules().items()}
        shape = None if self.dreamer is None else list(self.dreamer.shape)
        penalty = None if self.penalty is None else self.penalty.state_dict()
        own = {"draws": draws, "modules": modules, "shape": shape, "penalty": penalty}
        return {**super().state_dict(), **counters, **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["shape"] is not None and self.dreamer is None:
            self._add_dreamer(tuple(state["shape"]))
        elif state["shape"] is None and not self.feedback:  # of before the first experience
            self.dreamer = self.projection = None
            del self.optimiser.param_groups[self.groups :]
        super().load_state_dict(state)
        self.learned, self.blocks, self.kept = state["learned"], deepcopy(state["blocks"]), state["kept"].clone()
        for purpose, draws in self.draws.items():
            draws.set_state(state["draws"][purpose].clone())
        self.teacher = self.source = None
        if self.learned and self.settings.replay != "none":
            self._take()
        for name, module in self._modules().items():
            if module is not None:
                module.load_state_dict(state["modules"][name])
        if self.penalty is not None:
            self.penalty.load_state_dict(state["penalty"])
        self._tabulate()

    def _modules(self) -> dict[str, nn.Module | None]:
        """Networks beside the network."""
        own = None if self.feedback else self.dreamer
        old = None if self.feedback else self.source
        return {"teacher": self.teacher, "generator": own, "old generator": old, "projection": self.projection}


def taken(network: Any, copy: Any) -> Any:
    """A network as it is now, in evaluation mode; written into the last copy where there is one."""
    if copy is None:
        return deepcopy(network).eval().requires_grad_(False)
    copy.load_state_dict(network.state_dict())
    return copy
