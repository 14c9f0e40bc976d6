"""BiRT (Jeeveswaran et al. 2023): representations are replayed through noise, a slow copy teaches, and a balanced
memory has the last word.

The network is g below and f above (`models.split`); after the first experience g is frozen, and what it makes of some
samples is stored. `recipe` is "paper", or "released" for what the released program really does.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib import noises
from cllib.augment import AUGMENTS, LIGHT, augmented
from cllib.errors import UserError, flag, one_of, whole, within
from cllib.feeds import Batches, per_epoch
from cllib.herding import Exemplars, herd, quota
from cllib.learners.naive import Losses, Naive
from cllib.memory import DTYPES
from cllib.models.networks import copying, evaluating
from cllib.models.norms import tested
from cllib.models.split import Above, as_split
from cllib.randomness import generator, seeded
from cllib.streams.base import Experience, Stream, inputs

CHUNK = 250  # samples at once when an experience is looked through
REPLAYS = ("representations", "images", "none", "all")
RANGES, DISTANCES, SCHEDULES = ("seen", "new"), ("l2", "squared"), ("cosine", "constant")
PURPOSES = ("replay", "labels", "mixing", "attention", "supervision", "semantic memory", "augment", "tuning")
COUNTERS = ("order", "growth", "kinds", "learned", "step", "updates", "updated", "fresh", "data")
# Where paper and released program differ.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "mixup_p": 0.5,
        "label_p": 0.05,
        "label_range": "seen",
        "extrapolation": 0.0,
        "supervise_mixed": True,
        "supervise_new": False,
        "persistent": True,
        "scaled": False,
        "by_width": False,
        "alternating": False,
        "deterministic": True,
        "settled": True,
    },
    "released": {
        "mixup_p": 1.0,
        "label_p": 0.5,
        "label_range": "new",
        "extrapolation": 0.5,
        "supervise_mixed": False,
        "supervise_new": True,
        "persistent": False,
        "scaled": True,
        "by_width": True,
        "alternating": True,
        "deterministic": False,
        "settled": False,
    },
}


@dataclass(frozen=True)
class BiRTSettings:
    """What is None is as the `recipe` has it (`RECIPES`). Symbols of the paper in brackets.

    replay: "representations"; "images", with a g that goes on learning; "none"; or "all", joint training. buffer_size
    [M]; dtype: how representations are stored (`memory.encode`); replay_size: samples replayed in a step, None: as many
    as are new. freeze: g, after the first experience; None: where representations are replayed.

    replay_weight [alpha]; consistency [rho], beta_new [beta_1], beta_replay [beta_2]: of the distance to the semantic
    memory's logits; distance: "l2", or "squared", summed. divergence: weight of telling new classes from old ones.
    loss: "bce", one sigmoid a class, or "ce". ema [gamma]: what is kept of the semantic memory at an update, ema_rate
    [alpha_e]: chance of one after a step.

    mixup_p, mixup_shape: of M; label_p, label_range: of T, to classes "seen" or "new"; attention_p, attention_std: of
    A; supervision_p, supervision_std: of S; extrapolation: of X; gate: each "sample" has a chance, or the "batch".

    supervise_mixed: S also on mixed samples; supervise_new: and on new ones. persistent: updates of the semantic memory
    outlive the epoch. scaled: losses are weighted by the shares of new and old classes; by_width: as released, the old
    ones are those that the semantic memory has logits of, so after an update all classes are, and all their logits are
    taught. alternating: an epoch of new batches, then one of replayed ones. deterministic: samples are chosen and
    stored unchanged, not augmented. settled: what is frozen in fine-tuning is in evaluation mode. freeze_old: tokens
    and heads of old tasks are frozen; merge: the semantic memory is also updated at the end of an experience; where
    not, it still takes over what is new.

    tune_epochs, tune_step_size, tune_weight: of the fine-tuning on the memory after each experience but the first.
    schedule: of the step size, to final_step_size, after warmup_epochs from warmup_step_size. augment: one of
    `augment.AUGMENTS`.
    """

    recipe: str = "paper"
    replay: str = "representations"
    buffer_size: int = 200
    dtype: str = "float32"
    replay_size: int | None = None
    freeze: bool | None = None

    replay_weight: float = 1.0
    consistency: float = 1.0
    beta_new: float = 0.05
    beta_replay: float = 0.01
    distance: str = "l2"
    divergence: float = 0.1
    loss: str = "bce"
    ema: float = 1e-3
    ema_rate: float = 3e-3

    mixup_p: float | None = None
    mixup_shape: float = 0.1
    label_p: float | None = None
    label_range: str | None = None
    attention_p: float = 0.5
    attention_std: float = 1.0
    supervision_p: float = 0.4
    supervision_std: float = 0.01
    extrapolation: float | None = None
    gate: str = "sample"

    supervise_mixed: bool | None = None
    supervise_new: bool | None = None
    persistent: bool | None = None
    scaled: bool | None = None
    by_width: bool | None = None
    alternating: bool | None = None
    deterministic: bool | None = None
    settled: bool | None = None
    freeze_old: bool = False
    merge: bool = True

    tune_epochs: int = 20
    tune_step_size: float = 1e-4
    tune_weight: float = 2.0
    schedule: str = "cosine"
    final_step_size: float = 1e-5
    warmup_epochs: int = 0
    warmup_step_size: float = 1e-6
    augment: str = "none"

    def __post_init__(self) -> None:
        one_of("recipe", self.recipe, tuple(RECIPES))
        for name, value in {**RECIPES[self.recipe], "freeze": self.replay == "representations"}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        names = {"replay": REPLAYS, "distance": DISTANCES, "loss": tuple(LOSSES), "label_range": RANGES}
        names |= {"gate": noises.GATES, "schedule": SCHEDULES, "augment": AUGMENTS, "dtype": DTYPES}
        for name, allowed in names.items():
            one_of(name, getattr(self, name), allowed)
        whole("buffer_size", self.buffer_size, 1)
        if self.replay_size is not None:
            whole("replay_size", self.replay_size, 1)
        for name in ("tune_epochs", "warmup_epochs"):
            whole(name, getattr(self, name), 0)
        for name in ("ema", "ema_rate", "mixup_p", "label_p", "attention_p", "supervision_p"):
            within(name, getattr(self, name), 0, 1)
        for name in ("replay_weight", "consistency", "beta_new", "beta_replay", "divergence", "attention_std"):
            within(name, getattr(self, name), 0)
        for name in ("supervision_std", "extrapolation", "tune_step_size", "tune_weight"):
            within(name, getattr(self, name), 0)
        for name in ("final_step_size", "warmup_step_size"):
            within(name, getattr(self, name), 0)
        within("mixup_shape", self.mixup_shape, 1e-3)
        flags = [name for name, value in RECIPES["paper"].items() if isinstance(value, bool)]
        for name in (*flags, "freeze", "freeze_old", "merge"):
            flag(name, getattr(self, name))

    @property
    def taught(self) -> bool:
        """Whether the semantic memory has any weight."""
        return self.consistency * max(self.beta_new, self.beta_replay) > 0


# --- pure functions ---


def binary_cross_entropy(logits: Tensor, target: Tensor, competing: Tensor | None = None) -> Tensor:
    """BCE_C: mean over samples and classes of the sigmoid cross-entropy; logits, target, competing: `[B, C]`."""
    if competing is None:
        return F.binary_cross_entropy_with_logits(logits, target)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * competing).sum() / competing.sum()


def cross_entropy(logits: Tensor, target: Tensor, competing: Tensor | None = None) -> Tensor:
    """The usual one, to soft targets `[B, C]`."""
    if competing is None:
        return F.cross_entropy(logits, target)
    logp = logits.masked_fill(~competing, -torch.inf).log_softmax(-1).masked_fill(~competing, 0)
    return -(target * logp).sum(-1).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {"bce": binary_cross_entropy, "ce": cross_entropy}


def apart(logits: Tensor, taught: Tensor, distance: str) -> Tensor:
    """How far logits `[B, C]` lie from the teacher's: the mean Euclidean distance, or the sum of squares."""
    if distance == "squared":
        return (logits - taught).square().sum()
    return F.pairwise_distance(logits, taught).mean()  # adds 1e-6, so that its gradient is finite where they agree


def rate(epoch: float, epochs: int, how: BiRTSettings, step_size: float) -> float:
    """The step size in an epoch, from 0. With a warm-up it is one epoch late, as released."""
    t = max(0, epoch - 1) if how.warmup_epochs else epoch
    if t < how.warmup_epochs:
        return how.warmup_step_size + t / how.warmup_epochs * (step_size - how.warmup_step_size)
    if how.schedule == "constant":
        return step_size
    return how.final_step_size + (step_size - how.final_step_size) * (1 + cos(pi * t / epochs)) / 2


@torch.no_grad()
def average(slow: nn.Module, fast: nn.Module, ema: float, new: Collection[str] = ()) -> None:
    """theta_s becomes ema theta_s + (1 - ema) theta_w, for every parameter and statistic both have.

    new: names of what theta_s has no earlier values of, which are copied.
    """
    now = fast.state_dict()
    for name, value in slow.state_dict().items():
        if value.is_floating_point() and name not in new:
            value.lerp_(now[name], 1 - ema)
        else:
            value.copy_(now[name])


def start_over(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], step_size: float) -> None:
    """An optimiser begins anew with these parameters; vectors have no weight decay.

    A parameter keeps the coefficient `meta` that its group had (`metaplasticity`); one that is new has none.
    """
    first = {name: value for name, value in optimiser.param_groups[0].items() if name != "params"}
    own = {id(p): group.get("meta") for group in optimiser.param_groups for p in group["params"]}
    new = 0.0 if "meta" in first else None
    groups: dict[tuple[Any, bool], list[nn.Parameter]] = {}
    for p in sorted(parameters, key=lambda p: p.dim() <= 1):
        groups.setdefault((own.get(id(p), new), p.dim() > 1), []).append(p)
    optimiser.state, optimiser.param_groups = defaultdict(dict), []
    for (meta, matrices), group in groups.items():
        told = {"lr": step_size, "weight_decay": optimiser.defaults.get("weight_decay", 0.0) if matrices else 0.0}
        told |= {} if meta is None else {"meta": meta}
        optimiser.add_param_group({**first, **told, "params": group})


class Shown(NamedTuple):
    """A batch as f sees it, classes by their place in the order in which they came.

    r: `[B, ...]`; target: `[B, C]`, maybe soft; label: `[B]`; competing: `[B, C]` bool, None: all. Of stored samples,
    rows: where they are stored; mixed: which are mixtures; changed: which are not what is stored; on the CPU, `[B]`.
    """

    r: Tensor
    target: Tensor
    label: Tensor
    competing: Tensor | None
    rows: Tensor | None = None
    mixed: Tensor | None = None
    changed: Tensor | None = None


# --- the learner ---


class BiRT(Naive):
    """L = CE(new) + alpha CE(replayed) + rho (beta_1 |f_w - f_s|(new) + beta_2 |f_w - f_s|(replayed)) + divergence.

    At the end of an experience: its samples are herded into the memory; from the second one on tokens, heads and task
    block are fine-tuned on the memory; f_s is updated. At the end of the first: g is frozen, f_s becomes a copy of f.
    The loop tests three models there: f before fine-tuning, f_s before it is updated, and f.

    Any network can be used; of one that is not cut in two, samples are their own representations.

    Attributes:
        semantic: f_s, None before the end of the first experience, or if it has no weight.
        updates: of f_s within experiences, so far.
    """

    Settings = BiRTSettings
    waits: ClassVar[bool] = True  # for which rows have noise in their attention, drawn where the noise is
    chooses: ClassVar[bool] = True

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.split = as_split(self.network)
        copying(self.split.below)
        self.semantic: Above | None = None
        self.anchor: Above | None = None  # f_s at the start of the experience, where its updates are lost
        self.memory = Exemplars(settings.buffer_size, settings.dtype if settings.replay == "representations" else None)
        self.order: list[int] = []  # classes as they came
        self.growth: list[int] = []  # of them new, in every experience
        self.kinds = 0  # classes, counted in every experience anew
        self.place = torch.empty(0, dtype=torch.long)  # of every class in the order, -1: none yet
        self.learned = self.step = self.updates = 0
        self.plan = (1, 1)  # steps an epoch, and in all
        self.updated = False  # f_s, since the experience began, and the update is not lost
        self.fresh: list[str] = []  # parameters of f_s that came with the experience
        self.data = {"numbers": 0, "bytes": 0}  # of joint training
        self.known = torch.empty(0, dtype=torch.bool)  # of the stored samples, those that f_s was asked about
        self.said = torch.empty(0)  # its answers, `[M, C_old]`
        self.step_size = self.optimiser.defaults["lr"]
        device = next(self.network.parameters()).device
        places = {"attention": device}  # where there is much to draw; all else on the CPU
        self.draws = {purpose: generator(self.seed, purpose, places.get(purpose, "cpu")) for purpose in PURPOSES}

    @classmethod
    def feed(
        cls, settings: Any, stream: Stream, seed: int, batch_size: int, epochs: int, iterations: int | None
    ) -> Batches:
        return Batches(stream, seed, batch_size, epochs, iterations, settings.replay == "all")

    # --- the contract ---

    def begin(self, experience: Experience) -> None:
        new = [c for c in experience.classes if c not in self.order]
        if self.learned and not new and self.settings.scaled:
            raise UserError("scaled = True: losses are weighted by new classes, and an experience has none")
        if self.settings.replay == "all":
            self.data["numbers"] += experience.x.numel() + experience.y.numel()
            self.data["bytes"] += experience.x.nbytes + experience.y.nbytes
        self.order += new
        self.growth.append(len(new))
        self.kinds += len(experience.classes)
        if self._stores:
            quota(self.settings.buffer_size, self.kinds)
        self._place(experience.y.device)
        self.fresh = self._grow(len(self.growth) - 1)
        if not self.settings.persistent:
            self.anchor = deepcopy(self.semantic)
        long = per_epoch(len(experience), self.batch_size)
        self.plan = long, self.iterations or self.epochs * long
        self.step, self.updated = 0, False
        self._forget()
        self._train_all()

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        logits = super().observe(x, y)
        if self.step % self.plan[0] == 0 or self.step == self.plan[1]:
            self._end_epoch()
        return logits

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        changed = augmented(x, self.settings.augment, self.draws["augment"])
        new = self._plain(self.split.represent(changed), y)
        old = None if self.settings.alternating else self._replayed(self.settings.replay_size or len(y))
        logits, losses = self._losses(new, old)
        return self._wide(logits[: len(y)]), losses

    def correct(self) -> None:
        epoch, epochs = self.step // self.plan[0], -(-self.plan[1] // self.plan[0])
        for group in self.optimiser.param_groups:
            group["lr"] = rate(epoch, epochs, self.settings, self.step_size)

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        self._update()
        self.step += 1

    def finish(self, experience: Experience) -> None:
        how, first = self.settings, self.learned == 0
        if self._stores:
            self._store(experience)
        self.moment("before fine-tuning")
        self._freeze(after=1)
        if not first and len(self.memory) and how.tune_epochs:
            self._tune()
        if first and how.taught:
            self.semantic = self._copy()
        if self.semantic is not None:
            self.moment("semantic memory", Recall(self))
            if not first:
                self._average(how.ema if how.merge else 1.0)
        self.learned += 1
        self._forget()

    def predict(self, x: Tensor, experience: int | None = None) -> Tensor:
        """Logits; those of classes that have not come yet lie below all others, so that they are never the answer."""
        if self.split.above.grows and not self.order:
            return x.new_zeros(len(x), self.split.classes)
        return self.final(tested(self.network, x))

    def final(self, logits: Tensor) -> Tensor:
        """Logits of all classes, in their order, from those that f or f_s gives."""
        logits = self._wide(logits)
        if self.rivals is not None or not self.order or self.split.above.grows:
            return logits
        seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        seen[self.order] = True
        return torch.where(seen, logits, logits.amin(-1, keepdim=True) - 1)

    def held(self, classes: int) -> Tensor:
        """Stored samples of each class, `[classes]`."""
        empty = torch.empty(0, dtype=torch.long)
        return torch.bincount(self.memory.items.get("y", empty), minlength=classes)

    # --- classes, in the order in which they came ---

    def _place(self, device: torch.device) -> None:
        """Note where every class stands in the order."""
        self.place = torch.full((max(self.order) + 1,), -1, device=device)
        self.place[self.order] = torch.arange(len(self.order), device=device)

    def _columns(self, logits: Tensor) -> Tensor:
        """Logits of the classes that have come, in that order."""
        return logits if self.split.above.grows else logits[:, self.order]

    def _wide(self, logits: Tensor) -> Tensor:
        """Logits by class; of those that f has no head for yet, below all others."""
        if not self.split.above.grows:
            return logits
        low = logits.amin(-1, keepdim=True) - 1
        full = low.expand(-1, self.split.classes).clone()
        full[:, self.order[: logits.shape[1]]] = logits
        return full

    @property
    def old(self) -> int:
        """C_old, classes of earlier experiences."""
        return len(self.order) - self.growth[-1]

    @property
    def width(self) -> int:
        """Classes that f_s teaches, the first in the order: C_old, or all where they are counted by its width."""
        return len(self.order) if self.settings.by_width and self.updated else self.old

    @property
    def share(self) -> float:
        """lambda_t = C_old / C, C_old as f_s has it."""
        return self.width / len(self.order)

    # --- growing ---

    def _grow(self, task: int) -> list[str]:
        """Room for the classes of a task, in f and in f_s; returns the names of what f_s did not have."""
        above, classes = self.split.above, self.growth[task]
        if not (above.grows and classes):
            return []
        with seeded(self.seed, f"growth {task}"):
            above.grow(classes)
        if self.semantic is None:
            return []
        known = {k: v for k, v in self.semantic.state_dict().items() if not k.startswith("divergence")}
        self.semantic = self._copy()
        self.semantic.load_state_dict(known, strict=False)
        return [name for name in self.semantic.state_dict() if name not in known]

    def _copy(self) -> Above:
        """f as it is, for f_s."""
        return deepcopy(self.split.above).eval().requires_grad_(False)

    def _freeze(self, after: int) -> None:
        """No more learning in g, after any experiences."""
        if after and self.settings.freeze:
            self.split.below.requires_grad_(False).eval()

    def _train_all(self) -> None:
        """The optimiser starts over, with all that is not frozen."""
        if self.settings.freeze_old:
            self.split.above.hold(True)
        start_over(self.optimiser, self.parameters(), self.step_size)

    # --- a step ---

    @property
    def _stores(self) -> bool:
        """Whether there is a memory."""
        return self.settings.replay in ("representations", "images")

    def _plain(self, r: Tensor, y: Tensor) -> Shown:
        """A batch without noise."""
        label = self.place[y]
        target = F.one_hot(label, len(self.order)).to(r.dtype)
        return Shown(r, target, label, self._competing(label))

    def _competing(self, label: Tensor) -> Tensor | None:
        """Which classes compete with labels `[B]`, `[B, C]` bool."""
        if self.rivals is None:
            return None
        order = torch.tensor(self.order, device=label.device)
        return self.rivals[order[label]][:, order]

    def _replayed(self, count: int) -> Shown | None:
        """Stored samples, drawn without repetition and made noisy; None where there are none."""
        if self.learned == 0 or not len(self.memory):
            return None
        return self._noisy(torch.randperm(len(self.memory), generator=self.draws["replay"])[:count])

    def _stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Representations `[B, ...]` and labels of stored samples."""
        x, y = self.memory.take(rows)
        if self.settings.replay == "images":
            x = self.split.represent(augmented(inputs(x), self.settings.augment, self.draws["augment"]))
        return x, y

    def _noisy(self, rows: Tensor) -> Shown:
        """Stored samples through T, M and X, in this order."""
        how: BiRTSettings = self.settings
        r, y = self._stored(rows)
        label, classes = self.place[y], len(self.order)
        if how.label_p:
            chosen = noises.gated(len(y), how.label_p, how.gate, self.draws["labels"]).to(y.device)
            low = self.old if how.label_range == "new" and self.growth[-1] else 0
            label = noises.relabelled(label, chosen, low, classes, self.draws["labels"])
        target = F.one_hot(label, classes).to(r.dtype)
        competing, mixed = self._competing(label), torch.zeros(len(y), dtype=torch.bool)
        if how.mixup_p:
            draws = self.draws["mixing"]
            mixed = noises.gated(len(y), how.mixup_p, how.gate, draws)
            share, partner = noises.coefficient(how.mixup_shape, draws), torch.randperm(len(y), generator=draws)
            partner, chosen = partner.to(y.device), mixed.to(y.device)
            r, target = (noises.mixed(part, share, partner, chosen) for part in (r, target))
            if competing is not None:
                competing = competing | (competing[partner] & chosen[:, None])
        if how.extrapolation:
            r = noises.extrapolated(r, label, how.extrapolation, classes)
        changed = mixed | bool(how.extrapolation or how.replay == "images")
        return Shown(r, target, label, competing, rows, mixed, changed)

    def _losses(self, new: Shown | None, old: Shown | None) -> tuple[Tensor, Losses]:
        """What f answers to new and old samples, in one forward pass, and all losses."""
        how: BiRTSettings = self.settings
        parts = [part for part in (new, old) if part is not None]
        above, r = self.split.above, torch.cat([part.r for part in parts])
        e = above.embed(above.body(r, self._attention(0 if new is None else len(new.r), r, old)))
        answered = above.answer(e)
        diverged = above.diverge(e) if how.divergence and self.learned else None
        taught = self._taught(new, old)
        share = self.share if how.scaled else 0.0
        losses: Losses = {}
        last = 0
        for name, part, weight, beta in (
            ("", new, 1.0, how.beta_new),
            ("_replay", old, how.replay_weight, how.beta_replay),
        ):
            if part is None:
                continue
            rows = slice(last, last + len(part.r))
            logits, last = self._columns(answered[rows]), rows.stop
            losses[f"loss{name}"] = weight * (1 - share) * LOSSES[how.loss](logits, part.target, part.competing)
            if diverged is not None:
                told = (part.label - self.old + 1).clamp(min=0)  # 0 for old classes, else 1 ... n
                apiece = F.one_hot(told, diverged.shape[1]).to(r.dtype)
                losses[f"divergence{name}"] = how.divergence * binary_cross_entropy(diverged[rows], apiece)
            if name in taught:
                weight = how.consistency * beta * (share if how.scaled else 1.0)
                losses[f"consistency{name}"] = weight * apart(logits[:, : self.width], taught[name], how.distance)
        return answered, losses

    def _attention(self, first: int, r: Tensor, old: Shown | None) -> noises.AttentionNoise | None:
        """A, for the replayed rows."""
        how = self.settings
        if old is None or not how.attention_p or not how.attention_std:
            return None
        return noises.AttentionNoise(how.attention_p, how.attention_std, how.gate, self.draws["attention"], first, r)

    @torch.no_grad()
    def _taught(self, new: Shown | None, old: Shown | None) -> dict[str, Tensor]:
        """What f_s says about the classes it teaches, `[B, C_old]`, through S, by the name of the loss, where weighted.

        Of a sample that is as it is stored it is asked once, until it changes its mind.
        """
        how: BiRTSettings = self.settings
        new = new if how.consistency * how.beta_new else None
        old = old if how.consistency * how.beta_replay else None
        if self.semantic is None or (new is None and old is None):
            return {}
        asked = torch.empty(0, dtype=torch.long) if old is None else self._unsaid(old)
        parts = ([] if new is None else [new.r]) + ([] if old is None else [old.r[asked.to(old.r.device)]])
        tasks = sum(n > 0 for n in self.growth) - (self.width < len(self.order))
        said = self._columns(self.semantic(torch.cat(parts), first=tasks))[:, : self.width]
        first = 0 if new is None else len(new.r)
        taught: dict[str, Tensor] = {}
        if new is not None:
            taught[""] = self._supervised(said[:first], None) if how.supervise_new else said[:first]
        if old is not None:
            taught["_replay"] = self._supervised(self._said(old, asked, said[first:]), old.mixed)
        return taught

    def _unsaid(self, old: Shown) -> Tensor:
        """Of replayed samples, those that f_s has to be asked about, `[k]`."""
        assert old.changed is not None and old.rows is not None
        return (old.changed | ~self.known[old.rows]).nonzero()[:, 0]

    def _said(self, old: Shown, asked: Tensor, answers: Tensor) -> Tensor:
        """The answers beside those that were known, which they join."""
        assert old.changed is not None and old.rows is not None
        device = self.said.device
        taught = self.said[old.rows.to(device)]
        taught[asked.to(device)] = answers.to(taught.dtype)
        plain = asked[~old.changed[asked]]
        self.said[old.rows[plain].to(device)] = taught[plain.to(device)]
        self.known[old.rows[plain]] = True
        return taught

    def _forget(self) -> None:
        """What f_s said holds no longer."""
        count = 0 if self.semantic is None else len(self.memory)
        self.known = torch.zeros(count, dtype=torch.bool)
        self.said = torch.zeros(count, self.width, device=self.place.device)

    def _supervised(self, taught: Tensor, mixed: Tensor | None) -> Tensor:
        """S on the teacher's logits `[B, C_old]`."""
        how: BiRTSettings = self.settings
        if not how.supervision_p or not how.supervision_std:
            return taught
        draws = self.draws["supervision"]
        chosen = noises.gated(len(taught), how.supervision_p, how.gate, draws)
        if mixed is not None and not how.supervise_mixed:
            chosen = chosen & ~mixed
        return noises.supervised(taught, chosen.to(taught.device), how.supervision_std, draws)

    def _update(self) -> None:
        """f_s moves towards f, once in a while."""
        if self.semantic is None or not self.learned:
            return
        if float(torch.rand((), generator=self.draws["semantic memory"])) < self.settings.ema_rate:
            self._average(self.settings.ema)
            self.updates, self.updated = self.updates + 1, True
            self._forget()

    def _average(self, ema: float) -> None:
        """An update of f_s; what came with the experience is copied by the first, for f_s never knew it otherwise."""
        assert self.semantic is not None
        average(self.semantic, self.split.above, ema, () if self.updated else self.fresh)

    def _end_epoch(self) -> None:
        """Where passes alternate, one over the memory; where updates of f_s are lost, they are lost now."""
        if self.settings.alternating and self.learned and len(self.memory):
            order = torch.randperm(len(self.memory), generator=self.draws["replay"])
            for rows in order.split(self.settings.replay_size or self.batch_size):
                self._descend(rows)
        if self.anchor is not None and self.updated:
            self.semantic, self.updated = deepcopy(self.anchor), False
            self._forget()

    def _descend(self, rows: Tensor) -> None:
        """A step on stored samples alone."""
        self.optimiser.zero_grad()
        with torch.autocast(self.place.device.type, torch.bfloat16) if self.halved else nullcontext():
            _, losses = self._losses(None, self._noisy(rows))
        torch.stack(tuple(losses.values())).sum().backward()
        self.optimiser.step()
        self._update()

    # --- the end of an experience ---

    @torch.no_grad()
    def _store(self, experience: Experience) -> None:
        """Herd every class of an experience, and store what represents it."""
        how: BiRTSettings = self.settings
        each, draws = quota(how.buffer_size, self.kinds), self.draws["augment"]
        kind, light = ("none", "none") if how.deterministic else (how.augment, LIGHT.get(how.augment, how.augment))
        with evaluating(self.network):
            x = experience.x
            seen = torch.cat([self._features(augmented(inputs(part), kind, draws)) for part in x.split(CHUNK)])
            places = [(experience.y == c).nonzero()[:, 0] for c in experience.classes]
            rows = torch.cat([own[herd(seen[own], each).to(own.device)] for own in places])
            chosen = x[rows]
            if how.replay == "representations":
                parts = augmented(inputs(chosen), light, draws).split(CHUNK)
                chosen = torch.cat([self.split.represent(part) for part in parts])
        self.memory.add(chosen, experience.y[rows], each)

    def _features(self, x: Tensor) -> Tensor:
        """What is herded by: all that the task tokens have gathered, `[B, T D]`."""
        above = self.split.above
        return above.embed(above.body(self.split.represent(x))).flatten(1)

    def _tune(self) -> None:
        """Balanced fine-tuning: task block, tokens and heads on the memory alone, without noise or teacher."""
        how, above = self.settings, self.split.above
        above.hold(False)
        parts = above.tuned()
        tuned = {id(p): p for part in parts for p in part.parameters() if p.requires_grad}
        optimiser = self.optimiser
        training = optimiser.state, optimiser.param_groups  # kept until the next experience
        start_over(optimiser, [*tuned.values()], how.tune_step_size)
        self.network.train(not how.settled)
        for part in parts:
            part.train()
        quiet = how.settled and how.replay == "representations"
        kept = self._bodies(torch.arange(len(self.memory))) if quiet else None  # no step changes it
        for _ in range(how.tune_epochs):
            order = torch.randperm(len(self.memory), generator=self.draws["tuning"])
            for rows in order.split(self.batch_size):
                z = self._bodies(rows) if kept is None else kept[rows.to(kept.device)]
                batch = self._plain(z, self.memory.items["y"][rows.to(z.device)])
                logits = self._columns(above.answer(above.embed(z)))
                optimiser.zero_grad()
                (how.tune_weight * LOSSES[how.loss](logits, batch.target, batch.competing)).backward()
                optimiser.step()
        optimiser.state, optimiser.param_groups = training

    @torch.no_grad()
    def _bodies(self, rows: Tensor) -> Tensor:
        """What the frozen part of f makes of stored samples, `[B, ...]`."""
        return self.split.above.body(self._stored(rows)[0])

    # --- what is carried along ---

    def parts(self) -> dict[str, list[Tensor]]:
        copies = {"semantic memory": self.semantic, "anchor": self.anchor}
        kept = {name: [*copy.state_dict().values()] for name, copy in copies.items() if copy is not None}
        kept |= {"buffer": [*self.memory.items.values()], "places": [self.place], "said": [self.said, self.known]}
        return {**super().parts(), **kept}

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "data": self.data["numbers"]}

    def bytes(self) -> dict[str, int]:
        return {**super().bytes(), "data": self.data["bytes"]}

    def state_dict(self) -> dict[str, Any]:
        names = (*COUNTERS, "plan")
        counters = {name: deepcopy(getattr(self, name)) for name in names}
        copies = {"semantic": self.semantic, "anchor": self.anchor}
        kept: dict[str, Any] = {
            name: None if copy is None else deepcopy(dict(copy.state_dict())) for name, copy in copies.items()
        }
        draws = {purpose: draws.get_state() for purpose, draws in self.draws.items()}
        kept |= {"known": self.known.clone(), "said": self.said.clone()}
        return {**super().state_dict(), **counters, **kept, "memory": self.memory.state_dict(), "draws": draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in COUNTERS:
            setattr(self, name, deepcopy(state[name]))
        self.plan = tuple(state["plan"])
        device = next(self.network.parameters()).device
        for task in range(self.split.above.grown, len(self.growth)):
            self._grow(task)
        if self.order:
            self._place(device)
            self._freeze(after=len(self.growth) - 1)
            self._train_all()  # as it did when the experience began
            self._freeze(after=self.learned)
        for name in ("semantic", "anchor"):
            kept = None if state[name] is None else self._copy()
            if kept is not None:
                kept.load_state_dict(state[name])
            setattr(self, name, kept)
        self.memory.load_state_dict({name: values.to(device) for name, values in state["memory"].items()})
        self.known, self.said = state["known"].clone(), state["said"].to(device, copy=True)
        for purpose, draws in self.draws.items():
            draws.set_state(state["draws"][purpose].clone())
        super().load_state_dict(state)


class Recall:
    """What f_s answers, in evaluation mode."""

    def __init__(self, learner: BiRT) -> None:
        self.learner = learner

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Logits `[T, C]` of `x: [T, ...]`."""
        one = self.learner
        assert one.semantic is not None
        with evaluating(one.network):
            return one.final(one.semantic(one.split.represent(x)))
