"""The Memory Head of Tiezzi et al. (CoLLAs 2024): a linear layer whose weights are read from a keyed memory.

One *bank* is a set of m keys with their memory units and counters. With shared keys a layer is one bank whose units
hold the weights of all output neurons; otherwise every output neuron has a bank of its own. All functions take N
banks at once, so that many layers (seeds, settings, stream orders) advance in one program: `MemoryHead` is R
independent layers for online learning in closed form, `MemoryHeadLayer` one layer for autograd, on top of any
backbone. Both call the same functions.

Letters: N banks, B samples, m units, d key size, D = delta units attended to, o outputs of a bank, i = inputs (+ 1
with bias). Sections (§) and findings (P) are those of the book page "Memory Head, rule by rule".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import UserError, one_of, within
from cllib.optim import Rows
from cllib.randomness import generator

DISTANCES = ("euclidean", "cosine", "dot_scaled")
QUERIES = ("identity", "sign", "resize1d", "resize2d", "resize2d_sign")
MEMORY_UPDATES = ("WTA", "vanilla")
KEY_UPDATES = ("ad_hoc_WTA", "grad_WTA", "grad_not_WTA")
ORDERS = ("POST", "PRE")
COUNTED = ("after", "before")


@dataclass(frozen=True)
class MemoryHeadConfig:
    """Settings of one layer, the paper's symbol and the original flag behind each.

    Raises UserError at construction for a value that is impossible, naming it and what is allowed.
    """

    units: int = 16  # m (--key_mem_units)
    top: int = 2  # delta (--delta), clamped to m as in the paper
    distance: str = "euclidean"  # response of a key; the released command line only has cosine
    width: float = 1.0  # sigma of the euclidean response, 1 in the released code
    query: str = "identity"  # psi (--psi)
    key_size: int | None = None  # d (--key_size), when psi reduces
    key_step: float = 0.01  # beta (--beta_k)
    sharpness: float = 25.0  # gamma_alpha
    match_threshold: float = 0.95  # tau_alpha
    use_threshold: int = 50  # tau_mu
    age_threshold: int = 50  # tau_eta
    memory_update: str = "WTA"  # --upd_m
    key_update: str = "ad_hoc_WTA"  # --upd_k
    scramble: bool = True
    random_memories: bool = False  # a scrambled unit gets fresh memories instead of the winner's
    shared_keys: bool = True
    bias: bool = True
    when: str = "POST"  # keys move after (POST) or before (PRE) the output is computed
    counted: str = "after"  # winners of a batch whose use is counted: after the keys moved, as released, or "before"
    threshold_bug: bool = False  # released cosine: compares r / sqrt(d) with tau_alpha (P1)

    def __post_init__(self) -> None:
        within("units", self.units, 1)
        within("top", self.top, 1)
        object.__setattr__(self, "top", min(self.top, self.units))
        for name, allowed in _CHOICES.items():
            one_of(name, getattr(self, name), allowed)
        for name in ("key_step", "sharpness", "use_threshold", "age_threshold"):
            within(name, getattr(self, name), 0)
        within("width", self.width, 1e-12)
        within("match_threshold", self.match_threshold, -1 if self.distance != "euclidean" else 0)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.scramble and self.key_update != "ad_hoc_WTA":
            raise UserError(f"scramble = True with key_update = {self.key_update!r}: allowed is 'ad_hoc_WTA' only")
        if self.memory_update == "WTA" and self.key_update == "grad_not_WTA":
            raise UserError("memory_update = 'WTA' with key_update = 'grad_not_WTA': allowed are ad_hoc_WTA, grad_WTA")
        if self.threshold_bug and self.distance != "cosine":
            raise UserError(
                f"threshold_bug = True with distance = {self.distance!r}: the released bug is in 'cosine' only"
            )
        if self.query.startswith("resize") and self.key_size is None:
            raise UserError(f"query = {self.query!r} needs key_size, a number of at least 1")
        if self.key_size is not None:
            within("key_size", self.key_size, 1)
            if not self.query.startswith("resize"):
                raise UserError(
                    f"key_size = {self.key_size} with query = {self.query!r}: only resize queries change it"
                )

    def size_of_key(self, inputs: int) -> int:
        """d: `key_size` where psi reduces, else the layer's inputs."""
        return self.key_size if self.key_size is not None else inputs


_CHOICES = {
    "distance": DISTANCES,
    "query": QUERIES,
    "memory_update": MEMORY_UPDATES,
    "key_update": KEY_UPDATES,
    "when": ORDERS,
    "counted": COUNTED,
}
LARGE_UNIT = 4096  # floats; above, evaluation goes unit by unit
LARGE_KEY = 16  # floats; above, evaluation measures distances by one matrix product
# What may differ between the runs of one batched program: numbers that only enter arithmetic.
PER_RUN = ("key_step", "sharpness", "match_threshold", "use_threshold", "age_threshold")


@dataclass
class Bank:
    """State of N banks, changed in place by the functions below.

    keys: K `[N, m, d]`; memories: M `[N, m, o, i]`, a unit's rows are `[weights, bias]`;
    usage: mu `[N, m]`; age: eta `[N, m]`; scrambles: how often a key was replaced, `[N]`.
    """

    keys: Tensor
    memories: Tensor
    usage: Tensor
    age: Tensor
    scrambles: Tensor


@dataclass(frozen=True)
class Rates:
    """The per-run numbers of the configuration, shaped to broadcast over banks."""

    key_step: Tensor  # [N, 1, 1]
    sharpness: Tensor  # [N, 1, 1]
    match_threshold: Tensor  # [N]
    use_threshold: Tensor  # [N, 1]
    age_threshold: Tensor  # [N, 1]


# --- the query and the responses (§1.3, §1.4) ---


def query(x: Tensor, config: MemoryHeadConfig) -> Tensor:
    """psi(x): `[..., n]` to `[..., d]`, L2-normalised for cosine. Resizing interpolates (2D: x is a square)."""
    if config.query == "resize1d":
        x = F.interpolate(x.flatten(0, -2)[:, None], config.key_size, mode="linear").view(*x.shape[:-1], -1)
    elif config.query.startswith("resize2d"):
        old, new = side("inputs", x.shape[-1]), side("key_size", config.key_size or 0)
        x = F.interpolate(x.reshape(-1, 1, old, old), (new, new), mode="bilinear").view(*x.shape[:-1], -1)
    if config.query.endswith("sign"):
        x = x.sign()
    return F.normalize(x, dim=-1) if config.distance == "cosine" else x


def side(name: str, size: int) -> int:
    """The side of a square with `size` pixels; UserError if there is none."""
    root = round(size**0.5)
    if root * root != size:
        raise UserError(f"{name} = {size}: resize2d needs a square number")
    return root


def responses(keys: Tensor, psi: Tensor, distance: str, width: float = 1.0, fast: bool = False) -> Tensor:
    """r: `[N, B, m]` from keys `[N, m, d]` and queries `[N, B, d]`. Euclidean lies in (0, 1], 1 only on the key itself.

    fast: euclidean by one matrix product, which rounds differently; for evaluating many samples in many dimensions.
    """
    scale = keys.shape[-1] ** -0.5
    if distance != "euclidean":
        return torch.matmul(psi, keys.transpose(1, 2)) * scale
    scale = scale / width
    if fast:
        return torch.exp(torch.cdist(psi, keys, compute_mode="use_mm_for_euclid_dist").square() * -scale)
    gap = psi.unsqueeze(2) - keys.unsqueeze(1)  # [N, B, m, d]
    return torch.exp(torch.mv((gap * gap).flatten(0, 2), keys.new_full((keys.shape[-1],), -scale)).view(gap.shape[:3]))


def match(winning: Tensor, config: MemoryHeadConfig, key_size: int) -> Tensor:
    """What tau_alpha is compared with: the true cosine, unless the released bug is on; r itself otherwise (P1)."""
    return winning * key_size**0.5 if config.distance == "cosine" and not config.threshold_bug else winning


def attend(r: Tensor, sharpness: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` best units, best first (lowest index on ties), and their alpha: `[N, B, D]` each; alpha sums to 1."""
    values, index = best(r, top)
    return index, torch.softmax(sharpness * values, -1)


def best(r: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest entries of each row, largest first, and where they are; the lowest index first on ties.

    A few passes of max are several times faster than a stable sort, and topk promises no order among ties.
    """
    if top > 4:
        values, index = r.sort(dim=-1, descending=True, stable=True)
        return values[..., :top], index[..., :top]
    picks = [r.max(-1, keepdim=True)]
    for _ in range(top - 1):
        r = r.scatter(-1, picks[-1].indices, -torch.inf)
        picks.append(r.max(-1, keepdim=True))
    return torch.cat([p.values for p in picks], -1), torch.cat([p.indices for p in picks], -1)


# --- the output and its gradient (§1.5, §1.6) ---


def answers(memories: Tensor, index: Tensor, x1: Tensor) -> Tensor:
    """What each attended unit would say alone: M_j [x; 1], `[N, B, D, o]`, for index `[N, B, D]` and x1 `[N, B, i]`."""
    n, m, o, i = memories.shape
    flat = index + torch.arange(0, n * m, m, device=index.device).view(-1, 1, 1)
    units = memories.flatten(0, 1).index_select(0, flat.flatten()).view(-1, index.shape[-1] * o, i)  # [N B, D o, i]
    return torch.bmm(units, x1.reshape(-1, i, 1)).view(*index.shape, o)


def answers_by_unit(memories: Tensor, index: Tensor, x1: Tensor) -> Tensor:
    """The same as `answers`, unit by unit: nothing is copied per sample. For many samples and large units."""
    n, m, o, _ = memories.shape
    said = x1.new_empty(*index.shape, o)
    for bank in range(n):
        for j in range(m):
            sample, place = (index[bank] == j).nonzero(as_tuple=True)
            said[bank, sample, place] = x1[bank, sample] @ memories[bank, j].T
    return said


def mix(alpha: Tensor, said: Tensor) -> Tensor:
    """o = sum_j alpha_j said_j: `[N, B, o]` from alpha `[N, B, D]` and said `[N, B, D, o]`."""
    return torch.matmul(alpha.unsqueeze(2), said).squeeze(2)


def memory_gradient(g: Tensor, alpha: Tensor, index: Tensor, x1: Tensor, update: str) -> Rows:
    """dL/dM_j = alpha_j g [x; 1]^T, for the winner only (WTA) or for all attended units (vanilla).

    g: dL/do `[N, B, o]`. Returns rows: index `[N, B * k]`, values `[N, B * k, o, i]`, k = 1 or D.
    """
    k = 1 if update == "WTA" else alpha.shape[-1]
    outer = g.unsqueeze(-1) * x1.unsqueeze(-2)  # [N, B, o, i]
    values = alpha[..., :k, None, None] * outer.unsqueeze(2)  # [N, B, k, o, i]
    return Rows(index[..., :k].flatten(1), values.flatten(1, 2))


def key_gradient(
    g: Tensor,
    said: Tensor,
    r: Tensor,
    alpha: Tensor,
    index: Tensor,
    bank: Bank,
    psi: Tensor,
    rates: Rates,
    config: MemoryHeadConfig,
) -> Rows:
    """dL/dK through alpha, for all attended keys (§1.7; WTA memories: only alpha of the winner carries gradient, P5).

    said: `[N, B, D, o]` from `answers`. Returns rows: index `[N, B * D]`, values `[N, B * D, d]`.
    """
    towards = alpha * (said * g.unsqueeze(2)).sum(-1)  # alpha_j dL/dalpha_j, [N, B, D]
    if config.memory_update == "WTA":
        towards = torch.cat([towards[..., :1], torch.zeros_like(towards[..., 1:])], -1)
    score = rates.sharpness * (towards - alpha * towards.sum(-1, keepdim=True))  # dL/dr_j, [N, B, D]
    rows = index.flatten(1)
    d = psi.shape[-1]
    direction = psi.unsqueeze(2).expand(-1, -1, index.shape[-1], -1)  # [N, B, D, d]
    if config.distance == "euclidean":
        near = bank.keys.gather(1, rows.unsqueeze(-1).expand(-1, -1, d)).view(direction.shape)
        direction = 2 / config.width * r.gather(-1, index).unsqueeze(-1) * (direction - near)
    return Rows(rows, (score.unsqueeze(-1) * direction * d**-0.5).flatten(1, 2))


# --- what happens to keys, memories and counters (§1.7, §1.8) ---


def scramble_(
    bank: Bank,
    psi: Tensor,
    r: Tensor,
    winner: Tensor,
    rates: Rates,
    config: MemoryHeadConfig,
    fresh: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Give the oldest weak key of a bank to a sample that matches no key; at most one key a bank and step.

    weak = {j : mu_j < tau_mu and eta_j >= tau_eta}; fires if some key is weak and the worst-matched sample's r_w <
    tau_alpha. The key moves onto that sample, its memories become the winner's (or `fresh(bank number)`), its usage
    0, its age stays.
    r: `[N, B, m]`, winner: `[N, B]`. Returns the winners after the event, as PRE wants them: `[N, B]`.
    """
    weak = (bank.usage < rates.use_threshold) & (bank.age >= rates.age_threshold)  # [N, m]
    worst, sample = r.gather(-1, winner.unsqueeze(-1)).squeeze(-1).min(1)  # [N]
    fires = weak.any(1) & (match(worst, config, psi.shape[-1]) < rates.match_threshold)
    hit = fires.nonzero().squeeze(1)
    if not len(hit):
        return winner
    oldest = torch.where(weak[hit], bank.age[hit], -1).argmax(1)
    sample = sample[hit]
    source = winner[hit, sample]
    bank.keys[hit, oldest] = psi[hit, sample]
    bank.memories[hit, oldest] = (
        bank.memories[hit, source] if fresh is None else torch.stack([fresh(int(n)) for n in hit]).to(psi.device)
    )
    bank.usage[hit, oldest] = 0
    bank.scrambles[hit] += 1
    winner = winner.clone()
    winner[hit, sample] = oldest
    return winner


def pull_keys_(bank: Bank, psi: Tensor, r: Tensor, winner: Tensor, rates: Rates, config: MemoryHeadConfig) -> None:
    """Online k-means: the winning keys `[N, B]` move towards their samples; samples of one batch add up."""
    d = psi.shape[-1]
    rows = winner.unsqueeze(-1).expand(-1, -1, d)
    if config.distance == "cosine":
        pull = psi
    elif config.distance == "dot_scaled":
        pull = psi * d**-0.5
    else:
        pull = r.gather(-1, winner.unsqueeze(-1)) * (d**-0.5 / config.width) * (psi - bank.keys.gather(1, rows))
    bank.keys.scatter_add_(1, rows, rates.key_step * pull)
    if config.distance == "cosine":
        bank.keys.copy_(F.normalize(bank.keys, dim=-1))


def count_(bank: Bank, winner: Tensor) -> None:
    """usage of the winners + 1; every age + B, the winners' from 0: `winner: [N, B]`."""
    bank.usage.scatter_add_(1, winner, torch.ones_like(winner, dtype=bank.usage.dtype))
    bank.age.scatter_(1, winner, 0)
    bank.age.add_(winner.shape[1])


def advance_(
    bank: Bank,
    psi: Tensor,
    r: Tensor,
    winner: Tensor,
    rates: Rates,
    config: MemoryHeadConfig,
    fresh: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Scramble, pull the keys, count. Returns the winner: POST keeps the old one, PRE takes the replaced key."""
    pre = config.when == "PRE"
    if config.scramble:
        replaced = scramble_(bank, psi, r, winner, rates, config, fresh)
        if pre and replaced is not winner:
            winner, r = replaced, responses(bank.keys, psi, config.distance, config.width)
    if config.key_update == "ad_hoc_WTA":
        pull_keys_(bank, psi, r, winner, rates, config)
    again = psi.shape[1] > 1 and config.counted == "after" and config.key_update == "ad_hoc_WTA"
    count_(bank, responses(bank.keys, psi, config.distance, config.width).argmax(-1) if again else winner)
    return winner


def attend_pre(
    bank: Bank, psi: Tensor, winner: Tensor, index: Tensor, rates: Rates, config: MemoryHeadConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """PRE: r, index, alpha after the keys moved. For one sample D - 1 units stay chosen, a batch attends anew."""
    r = responses(bank.keys, psi, config.distance, config.width)
    if psi.shape[1] > 1:
        return r, *attend(r, rates.sharpness, config.top)
    index = torch.cat([winner.unsqueeze(-1), index[..., 1:]], -1)
    return r, index, torch.softmax(rates.sharpness * r.gather(-1, index), -1)


# --- R layers that learn online, in closed form ---


def with_one(x: Tensor, bias: bool) -> Tensor:
    """[x; 1] along the last axis when there is a bias."""
    return torch.cat([x, torch.ones_like(x[..., :1])], -1) if bias else x


def initial_keys(generator: torch.Generator, m: int, d: int, q: int, cosine: bool) -> Tensor:
    """K ~ U(-1/sqrt d, 1/sqrt d), normalised if cosine: `[q, m, d]`."""
    keys = (torch.rand(q, m, d, generator=generator) * 2 - 1) * d**-0.5
    return F.normalize(keys, dim=-1) if cosine else keys


def initial_memories(generator: torch.Generator, *shape: int) -> Tensor:
    """M ~ U(-1/sqrt u, 1/sqrt u), u the size of a whole unit (o * i): `[..., o, i]`."""
    return (torch.rand(*shape, generator=generator) * 2 - 1) * (shape[-1] * shape[-2]) ** -0.5


def new_bank(inputs: int, outputs: int, config: MemoryHeadConfig, generator: torch.Generator) -> Bank:
    """One layer as q banks (1, or one per output): keys drawn first, then memories; every key starts weak."""
    q, o, m = (1, outputs, config.units) if config.shared_keys else (outputs, 1, config.units)
    keys = initial_keys(generator, m, config.size_of_key(inputs), q, config.distance == "cosine")
    memories = initial_memories(generator, q, m, o, inputs + config.bias)
    usage = torch.zeros(q, m, dtype=torch.int32)
    age = torch.full((q, m), int(config.age_threshold), dtype=torch.int32)
    return Bank(keys, memories, usage, age, torch.zeros(q, dtype=torch.int64))


def stack_rates(configs: Sequence[MemoryHeadConfig], banks: int, device: str | torch.device) -> Rates:
    """Per-run numbers of R configurations, repeated for the banks of each run."""
    shapes = {"key_step": (-1, 1, 1), "sharpness": (-1, 1, 1), "match_threshold": (-1,)}

    def column(name: str) -> Tensor:
        values = torch.tensor([float(getattr(config, name)) for config in configs], device=device)
        return values.repeat_interleave(banks).view(shapes.get(name, (-1, 1)))

    return Rates(**{name: column(name) for name in PER_RUN})


def check_same_shape(configs: Sequence[MemoryHeadConfig]) -> None:
    """Runs of one program may differ in `PER_RUN` only; UserError names the first other difference."""
    for field in fields(MemoryHeadConfig):
        values = {getattr(config, field.name) for config in configs}
        if len(values) > 1 and field.name not in PER_RUN:
            raise UserError(
                f"{field.name} differs between runs ({sorted(map(str, values))}): only {', '.join(PER_RUN)} may"
            )


class MemoryHead:
    """R Memory Heads, one per seed, that learn online without autograd; run r equals a program of its own.

    Args:
        inputs, outputs: n and c.
        configs: one per run; they may differ in `PER_RUN` numbers only (UserError otherwise).
        seeds: one per run; the initial keys and memories depend on nothing else.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        configs: Sequence[MemoryHeadConfig],
        seeds: Sequence[int],
        device: str | torch.device = "cpu",
    ) -> None:
        if len(configs) != len(seeds):
            raise UserError(f"{len(configs)} configurations for {len(seeds)} seeds: give one configuration per seed")
        check_same_shape(configs)
        self.config, self.configs, self.seeds = configs[0], tuple(configs), tuple(seeds)
        self.inputs, self.outputs, self.device = inputs, outputs, torch.device(device)
        self.banks = 1 if self.config.shared_keys else outputs
        self.rates = stack_rates(configs, self.banks, device)
        self.reset()

    def reset(self) -> None:
        """Draw keys and memories from the seeds again and clear the counters."""
        layers = [
            new_bank(self.inputs, self.outputs, config, generator(seed, "init"))
            for config, seed in zip(self.configs, self.seeds, strict=True)
        ]
        self.bank = Bank(*(torch.cat([getattr(one, f.name) for one in layers]).to(self.device) for f in fields(Bank)))
        self.fresh = [generator(seed, "random memories") for seed in self.seeds]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What the optimiser moves: memories, and keys when they are learned by gradient."""
        learned = {"memories": self.bank.memories}
        return learned if self.config.key_update == "ad_hoc_WTA" else {**learned, "keys": self.bank.keys}

    def _fresh_memories(self, n: int) -> Tensor:
        return initial_memories(self.fresh[n // self.banks], *self.bank.memories.shape[2:])

    def _to_banks(self, x: Tensor) -> Tensor:
        """`[R, B, n]` to `[N, B, n]`: every bank of a run sees the run's input."""
        return x if self.banks == 1 else x.repeat_interleave(self.banks, 0)

    def _to_runs(self, out: Tensor) -> Tensor:
        """`[N, B, o]` to logits `[R, B, c]`."""
        if self.banks == 1:
            return out
        return out.view(-1, self.banks, out.shape[1]).transpose(1, 2)  # [R, B, q]

    def _gradient_to_banks(self, g: Tensor) -> Tensor:
        """dL/dlogits `[R, B, c]` to `[N, B, o]`."""
        return g if self.banks == 1 else g.transpose(1, 2).flatten(0, 1).unsqueeze(-1)

    def learn(self, x: Tensor, loss_gradient: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Rows]]:
        """Forward and backward in training mode; keys and counters move here, the memories' gradient is returned.

        x: `[R, B, n]`; loss_gradient: logits `[R, B, c]` -> dL/dlogits. Returns logits and gradients for an optimiser
        (§1.8).
        """
        config, bank, rates = self.config, self.bank, self.rates
        x = self._to_banks(x)
        if config.distance == "cosine" and config.key_update != "ad_hoc_WTA":
            bank.keys.copy_(F.normalize(bank.keys, dim=-1))
        psi, x1 = query(x, config), with_one(x, config.bias)
        r = responses(bank.keys, psi, config.distance, config.width)
        index, alpha = attend(r, rates.sharpness, config.top)
        fresh = self._fresh_memories if config.random_memories else None
        if config.when == "PRE":
            winner = advance_(bank, psi, r, index[..., 0], rates, config, fresh)
            if config.key_update == "ad_hoc_WTA":
                r, index, alpha = attend_pre(bank, psi, winner, index, rates, config)
        said = answers(bank.memories, index, x1)
        logits = self._to_runs(mix(alpha, said))
        g = self._gradient_to_banks(loss_gradient(logits))
        gradients = {"memories": memory_gradient(g, alpha, index, x1, config.memory_update)}
        if config.key_update != "ad_hoc_WTA":
            gradients["keys"] = key_gradient(g, said, r, alpha, index, bank, psi, rates, config)
        if config.when == "POST":
            advance_(bank, psi, r, index[..., 0], rates, config, fresh)
        return logits, gradients

    def logits(self, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Logits `[R, B, c]` of `x: [R, B, n]` in evaluation mode: nothing changes. Other `parameters` may be tried."""
        given = parameters or {}
        memories, keys = given.get("memories", self.bank.memories), given.get("keys", self.bank.keys)
        if self.config.distance == "cosine" and self.config.key_update != "ad_hoc_WTA":
            keys = F.normalize(keys, dim=-1)
        x = self._to_banks(x)
        r = responses(
            keys, query(x, self.config), self.config.distance, self.config.width, fast=keys.shape[-1] > LARGE_KEY
        )
        index, alpha = attend(r, self.rates.sharpness, self.config.top)
        speak = answers_by_unit if memories[0, 0].numel() > LARGE_UNIT else answers
        said = speak(memories, index, with_one(x, self.config.bias))
        return self._to_runs(mix(alpha, said))

    def work(self) -> int:
        """Floats that evaluating one sample in all runs touches at once."""
        (n, m, d), (o, i) = self.bank.keys.shape, self.bank.memories.shape[2:]
        copied = o if o * i > LARGE_UNIT else o * i
        return n * (m * (1 if d > LARGE_KEY else d) + self.config.top * copied)

    def sizes(self) -> dict[str, int]:
        """Floats of one run: what is learned by gradient and what is kept beside it."""
        per_run = {f.name: getattr(self.bank, f.name).numel() // len(self.seeds) for f in fields(Bank)}
        return {"memories": per_run["memories"], "keys": per_run["keys"], "counters": per_run["usage"] + per_run["age"]}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that learning changed, random states included."""
        state = {f.name: getattr(self.bank, f.name).clone() for f in fields(Bank)}
        return {**state, "fresh": torch.stack([g.get_state() for g in self.fresh])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state from `state_dict`."""
        for f in fields(Bank):
            getattr(self.bank, f.name).copy_(state[f.name])
        for g, saved in zip(self.fresh, state["fresh"], strict=True):
            g.set_state(saved.clone())  # a view would crash: its offset is ignored


# --- one layer for autograd ---


class MemoryHeadLayer(nn.Module):
    """A drop-in for `nn.Linear(inputs, outputs)` with a keyed memory, trained by any torch optimiser.

    x: `[B, n]` to `[B, c]`. In training mode keys and counters move once per forward (PRE) or when the output's
    gradient arrives (POST). Keys are a buffer with `key_update = "ad_hoc_WTA"`, a Parameter otherwise.

    Example:
        >>> layer = MemoryHeadLayer(512, 100, MemoryHeadConfig(units=100, top=5))
        >>> layer(torch.randn(8, 512)).shape
        torch.Size([8, 100])
    """

    keys: Tensor
    usage: Tensor
    age: Tensor
    scrambles: Tensor

    def __init__(self, inputs: int, outputs: int, config: MemoryHeadConfig | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config or MemoryHeadConfig()
        start = new_bank(inputs, outputs, self.config, generator(seed, "init"))
        self.memories = nn.Parameter(start.memories)
        if self.config.key_update == "ad_hoc_WTA":
            self.register_buffer("keys", start.keys)
        else:
            self.keys = nn.Parameter(start.keys)
        for name in ("usage", "age", "scrambles"):
            self.register_buffer(name, getattr(start, name))
        self._random = generator(seed, "random memories")

    def _bank(self) -> Bank:
        return Bank(self.keys.data, self.memories.data, self.usage, self.age, self.scrambles)

    def _advance(self, psi: Tensor, r: Tensor, winner: Tensor, rates: Rates) -> Tensor:
        shape = self.memories.shape[2:]
        fresh = (lambda _: initial_memories(self._random, *shape)) if self.config.random_memories else None
        with torch.no_grad():
            return advance_(self._bank(), psi.detach(), r.detach(), winner, rates, self.config, fresh)

    def _after_backward(self, psi: Tensor, r: Tensor, winner: Tensor, rates: Rates, gradient: Tensor) -> None:
        self._advance(psi, r, winner, rates)

    def _alpha(self, alpha: Tensor) -> Tensor:
        """WTA memories: only the winner's alpha carries gradient."""
        return torch.cat([alpha[..., :1], alpha[..., 1:].detach()], -1) if self.config.memory_update == "WTA" else alpha

    def forward(self, x: Tensor) -> Tensor:
        config, q = self.config, self.keys.shape[0]
        rates = stack_rates([config], q, x.device)
        learned = config.key_update != "ad_hoc_WTA"
        keys = self.keys
        if learned and config.distance == "cosine":
            if self.training:
                keys.data.copy_(F.normalize(keys.data, dim=-1))
            else:
                keys = F.normalize(keys, dim=-1)
        inputs = x.expand(q, *x.shape)  # [q, B, n]
        psi = query(inputs if learned and config.distance == "cosine" else inputs.detach(), config)
        r = responses(keys, psi, config.distance, config.width)
        index, alpha = attend(r, rates.sharpness, config.top)
        if self.training and config.when == "PRE":
            winner = self._advance(psi, r, index[..., 0], rates)
            if not learned:
                r, index, alpha = attend_pre(self._bank(), psi, winner, index, rates, config)
        said = self._answers(index, with_one(inputs, config.bias))
        out = mix(self._alpha(alpha), said)  # [q, B, o]
        if self.training and config.when == "POST" and out.requires_grad:
            out.register_hook(partial(self._after_backward, psi, r, index[..., 0], rates))
        return out.squeeze(0) if config.shared_keys else out.squeeze(-1).T

    def _answers(self, index: Tensor, x1: Tensor) -> Tensor:
        """`answers`, with the units behind the winner detached when memories are updated winner-take-all."""
        if self.config.memory_update == "vanilla" or self.config.top == 1:
            return answers(self.memories, index, x1)
        rest = answers(self.memories.detach(), index[..., 1:], x1)
        return torch.cat([answers(self.memories, index[..., :1], x1), rest], 2)
