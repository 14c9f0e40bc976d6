"""Chapter 4, brain-inspired replay and feature exaggeration: its parameters."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cllib.chapters.common import Chapter, check_sharing, once
from cllib.errors import UserError, flag, one_of, whole, within
from cllib.exaggeration import DIVERGENCES, PAIRS, TARGETS, Exaggeration
from cllib.learners.ewc import EWCSettings
from cllib.learners.generative_replay import REPLAYS, GenerativeReplaySettings
from cllib.learners.si import SISettings
from cllib.models.conv_front import OWN, RANDOM, ConvMLP
from cllib.models.networks import MLP
from cllib.models.replay_vae import ReplayVAE
from cllib.recipes import Recipe
from cllib.streams.base import Stream
from cllib.streams.protocols import PROTOCOLS, Protocol, protocol_stream
from cllib.threads import cores

NAME = "04_brain_inspired_replay"
USUAL = ("main", "scenarios", "ablation", "exaggeration", "released", "look")
PARTS = (*USUAL, "reference")  # the last one was run beforehand
ORDERS = ("natural", "drawn")
KINDS = ("repulsion", "recon_repulsion", "recon_attraction", "contrastive")


@dataclass(frozen=True)
class BrainReplayChapter(Chapter):
    """Chapter 4. Behind each knob: its name in the original.

    The knobs from `scenario` on describe one method, brain-inspired replay, on one experiment; every table varies it.
    None: as the experiment's protocol says (`streams.protocols`).
    """

    parts: tuple[str, ...] = USUAL  # which parts of the chapter are run
    workers: int | None = None  # processes that share the runs on a CPU; None: one a core
    other_seeds: int = 3  # runs behind everything but the main comparison and the sweep
    light_iters: int | None = 50  # steps a task in all tables but the main one; None: as there
    others: tuple[str, ...] = (  # experiments and scenarios of the smaller comparison, as "EXPERIMENT, SCENARIO"
        *("digits; task", "digits; domain", "permuted digits; domain"),
        "convolved digits; class",
    )
    sweep: tuple[str, ...] = KINDS  # what is exaggerated
    strengths: tuple[float, ...] = (1e-6, 1e-2, 1.0)  # how much
    compared: tuple[str, ...] = ("none", "joint", "LwF", "SI", "EWC", "s-GR", "BI-R", "BI-R + SI")
    live: bool = True  # draw the curves while the first run trains, in JupyterLab
    data_dir: str | None = None  # where MNIST and CIFAR lie, or are downloaded to
    order: str = "natural"  # of the classes: natural | drawn, from every seed
    train_size: int | None = None  # only the first so many of each class

    experiment: str = "digits"  # --experiment
    scenario: str = "class"  # class | task | domain
    tasks: int | None = None
    iters: int | None = None  # a task
    batch_size: int | None = None  # batch
    replay_size: int | None = None  # batch_replay
    lr: float | None = None
    hidden: int | None = None  # fc_units
    latent: int | None = None  # z_dim
    modes: int = 1  # n_modes
    gates: float | None = None  # dg_prop
    replay: str = "generative"  # generative | current | none
    distill: bool = True
    temperature: float = 2.0  # temp
    si: bool = False
    c: float | None = None  # strength of SI
    lowest: float | None = None  # 0: no negative importances
    reconstruction: str | None = None  # bce | saturating bce, as released | mse, through convolutions
    recon_weight: float = 1.0
    kl_weight: float = 1.0  # variat_weight
    class_weight: float = 1.0  # pred_weight
    kl_scale: int | None = None  # what the KL term is divided by
    weights: str = OWN  # of the convolutions: own | random | a file
    halved: bool = False  # multiply matrices in bfloat16
    repulsion: float = 0.0  # --repulsion, lamda_rep
    divergence: str = "js"  # kl_js: js, as released | kl | true js | overlap
    pair: str = "posterior"  # posterior | prior
    factor: float | None = None  # use_rep_f, rep_f
    recon_repulsion: float = 0.0  # --recon-repulsion, lamda_recon_rep
    recon_attraction: float = 0.0  # --recon-attraction, lamda_recon_atr
    averaged: bool = True  # recon_rep_aver
    contrastive: float = 0.0
    targets: str = "label"  # c_scores: label | softmax | raw, as released
    contrast_temperature: float = 1.0  # c_temp
    contrast_dropout: float = 0.5  # c_drop
    contrast_lr: float | None = None  # c_lr
    not_hidden: bool = False  # the same noise in every step, which is all that it changes

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharing(self.parts, PARTS, self.workers)
        whole("other_seeds", self.other_seeds, 1)
        for name in ("light_iters", "train_size", "tasks", "iters", "batch_size", "hidden", "latent"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        for name in ("sweep", "strengths", "compared"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty: give one at least")
        self._check_contrast()
        for kind in self.sweep:
            one_of("sweep", kind, KINDS)
        for strength in self.strengths:
            within("strengths", strength, 0)
        for method in self.compared:
            one_of("compared", method, tuple(METHODS))
        for name in ("live", "si"):
            flag(name, getattr(self, name))
        one_of("order", self.order, ORDERS)
        self._check_experiments()
        one_of("replay", self.replay, REPLAYS)
        for name, allowed in (("divergence", DIVERGENCES), ("pair", PAIRS), ("targets", TARGETS)):
            one_of(name, getattr(self, name), allowed)
        if self.c is not None:
            within("c", self.c, 0)
        if self.scenario == "task" and self.exaggeration().on:
            raise UserError(
                "scenario = 'task': classes of different tasks do not compete; exaggerate in 'class' or 'domain'"
            )
        self.recipe()

    def _check_contrast(self) -> None:
        """Raise UserError, by the parameter's own name, for what the settings made of it would refuse."""
        within("contrast_temperature", self.contrast_temperature, 1e-3)
        within("contrast_dropout", self.contrast_dropout, 0, 0.95)
        for name in ("lr", "contrast_lr"):
            if getattr(self, name) is not None:
                within(name, getattr(self, name), 1e-12)
        if self.weights not in (OWN, RANDOM) and not Path(self.weights).is_file():
            raise UserError(f"weights = {self.weights!r}: no such file; else {OWN} or {RANDOM}")

    def _check_experiments(self) -> None:
        """Raise UserError for experiments that do not exist, or not in that scenario."""
        one_of("experiment", self.experiment, tuple(PROTOCOLS))
        one_of("scenario", self.scenario, self.protocol.scenarios)
        for pair in self.others:
            name, _, scenario = pair.partition("; ")
            one_of("others", name, tuple(PROTOCOLS))
            one_of(f"others: {pair!r}: scenario", scenario, PROTOCOLS[name].scenarios)

    # --- the experiment ---

    @property
    def protocol(self) -> Protocol:
        """What the experiment is trained with where the parameters do not say."""
        return PROTOCOLS[self.experiment]

    @property
    def exaggerates(self) -> bool:
        """Whether there are scores to go by, and classes that compete."""
        return self.distill and self.replay == "generative" and self.scenario != "task"

    @property
    def images(self) -> bool:
        """Whether images are replayed too where features could be."""
        return self.protocol.conv and self.protocol.tuned

    @property
    def crew(self) -> int:
        """Processes that share the runs."""
        return 1 if self.on != "cpu" else self.workers or cores()

    @property
    def few(self) -> list[int]:
        """The seeds of everything but the main comparison and the sweep."""
        return list(range(self.seed, self.seed + self.other_seeds))

    @property
    def light(self) -> "BrainReplayChapter":
        """The chapter with the steps of the smaller tables."""
        return replace(self, iters=self.light_iters or self.iters)

    def at(self, pair: str) -> "BrainReplayChapter":
        """The chapter at another "EXPERIMENT; SCENARIO", sizes as its protocol has them.

        Told the task, nothing competes, so nothing is exaggerated there.
        """
        name, _, scenario = pair.partition("; ")
        calm: dict[str, Any] = {**dict.fromkeys(KINDS, 0.0), "not_hidden": False} if scenario == "task" else {}
        own: dict[str, Any] = dict.fromkeys(
            ("tasks", "batch_size", "replay_size", "lr", "hidden", "latent", "gates", "kl_scale", "reconstruction")
        )
        return replace(self, experiment=name, scenario=scenario, **calm, **(own if name != self.experiment else {}))

    def stream(self, seed: int | None = None) -> Stream:
        """The stream; of a run's seed where it draws the order of classes. Raises UserError for data not at hand."""
        return protocol_stream(*self._told(seed))

    def _told(self, seed: int | None) -> tuple[Any, ...]:
        """What `protocol_stream` is told."""
        drawn = seed if self.order == "drawn" and not self.protocol.permuted else None
        return self.experiment, self.scenario, self.tasks, drawn, self.data_dir, self.train_size

    def single(self, seed: int) -> tuple[Stream, Recipe]:
        """The stream and the learner of one run. Raises UserError for data not at hand."""
        return once(protocol_stream, *self._told(seed)), self.recipe()

    def streams(self, seeds: list[int]) -> dict[int, Stream]:
        """The stream of every seed; one and the same unless each draws the order of classes."""
        if self.order == "drawn" and not self.protocol.permuted:
            return {seed: self.stream(seed) for seed in seeds}
        return dict.fromkeys(seeds, self.stream())

    def vae(self, **changes: Any) -> ReplayVAE:
        """The network that dreams, or with changes."""
        how = self.protocol
        shut = how.gates[self.scenario] if self.gates is None else self.gates
        if self.si and self.gates is None and how.with_si is not None and self.scenario == "class":
            shut = how.with_si
        told: dict[str, Any] = {"hidden": self.hidden or how.hidden, "latent": self.latent or how.latent}
        told |= {"modes": self.modes, "gates": shut, "kl_scale": self.kl_scale}
        told |= {"tasks": self.tasks or how.tasks} if how.permuted else {}
        told |= {"stem": "conv", "weights": self.weights, "reconstruction": "mse"} if how.conv else {}
        told |= {} if self.reconstruction is None else {"reconstruction": self.reconstruction}
        return ReplayVAE(**{**told, **changes})

    def plain(self, freeze: bool = False) -> MLP | ConvMLP:
        """The classifier alone, with convolutions that learn unless they are frozen."""
        how = self.protocol
        sizes = (self.hidden or how.hidden,) * 2
        return ConvMLP(sizes, self.weights, freeze or not how.tuned) if how.conv else MLP(sizes)

    def exaggeration(self, **changes: Any) -> Exaggeration:
        """What is exaggerated, or with changes."""
        told = {f.name: getattr(self, f.name) for f in fields(Exaggeration) if hasattr(self, f.name)}
        told |= {"temperature": self.contrast_temperature, "dropout": self.contrast_dropout}
        told |= {"head_step_size": self.contrast_lr, "same_noise": self.not_hidden}
        return Exaggeration(**{**told, **changes})

    def settings(self, **changes: Any) -> GenerativeReplaySettings:
        """Of brain-inspired replay, or with changes."""
        names = (
            "replay",
            "replay_size",
            "distill",
            "temperature",
            "recon_weight",
            "kl_weight",
            "class_weight",
            "lowest",
        )
        told = {name: getattr(self, name) for name in names} | {"exaggerate": self.exaggeration()}
        strength = self.protocol.c_replay[self.scenario] if self.c is None else self.c
        return GenerativeReplaySettings(**{**told, "si": strength if self.si else 0.0, **changes})

    def trained(self, learner: str, settings: Any, network: Any) -> Recipe:
        """A method with the protocol's training."""
        how = self.protocol
        return Recipe(
            learner,
            settings,
            network,
            optimizer="adam",
            step_size=self.lr or how.lr,
            batch_size=self.batch_size or how.batch,
            iterations=self.iters or how.iters,
            halved=self.halved,
        )

    def recipe(self, vae: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        """Brain-inspired replay, with changes to the network and to the learner's settings."""
        return self.trained("generative", self.settings(**changes), self.vae(**(vae or {})))

    def separate(self, internal: bool = False, distill: bool = False, **vae: Any) -> Recipe:
        """Replay from a generator of its own (s-GR), with what brain-inspired replay adds, one by one."""
        told: dict[str, Any] = {"prior": "standard", "gates": 0.0, **vae}
        if self.protocol.conv and self.protocol.tuned and not internal:
            told |= {"internal": False, "freeze": False}
        settings = self.settings(generator=self.vae(**told), distill=distill, exaggerate=Exaggeration())
        return self.trained("generative", settings, self.plain(freeze=internal))

    # --- the tables ---

    def methods(self) -> dict[str, Recipe]:
        """The comparison."""
        return {name: METHODS[name](self) for name in self.compared}

    def without(self) -> dict[str, Recipe]:
        """Brain-inspired replay without one of its parts."""
        own = self.vae(**self._gates("feedback"))
        made = {
            "BI-R": self.recipe(),
            "... without feedback": self.trained(
                "generative", self.settings(generator=own), self.plain(freeze=self.protocol.conv)
            ),
            "... without class prior": self.recipe(
                {"prior": "standard", **self._gates("class prior")}, exaggerate=self.exaggeration(pair="posterior")
            ),
            "... without gates": self.recipe({"gates": 0.0}),
            "... without distillation": self.recipe(
                self._gates("distillation"), distill=False, exaggerate=Exaggeration()
            ),
        }
        images = {"internal": False, **self._gates("internal")}
        return made | ({"... not internal": self.recipe(images)} if self.images else {})

    def _gates(self, part: str) -> dict[str, Any]:
        """The published share of shut units for an ablation, where there is one and the parameters do not say."""
        published = self.protocol.ablated.get(part, {}).get(self.scenario)
        return {} if published is None or self.gates is not None else {"gates": published}

    def added(self) -> dict[str, Recipe]:
        """Plain generative replay with one of the parts."""
        own = self.vae()
        plain: dict[str, Any] = {"prior": "standard", "gates": 0.0}
        inner = {"internal": False} if self.images else {}
        made = {
            "s-GR": self.separate(),
            "... with feedback": self.recipe({**plain, **inner}, distill=False, exaggerate=Exaggeration()),
            "... with class prior": self.separate(prior="classes", modes=own.modes),
            "... with gates": self.separate(**{"gates": own.gates, "tasks": own.tasks, **self._gates("gates alone")}),
            "... with distillation": self.separate(distill=True),
        }
        return made | ({"... internal": self.separate(internal=True)} if self.images else {})

    def swept(self) -> dict[str, Recipe]:
        """Every exaggeration at every strength, and none."""
        if not self.exaggerates:
            return {}
        made = {"none": self.recipe(exaggerate=Exaggeration())}
        for kind in self.sweep:
            for strength in self.strengths:
                made[f"{kind} {strength:g}"] = self.recipe(exaggerate=self.exaggeration(**{kind: strength}))
        return made

    def released(self) -> dict[str, Recipe]:
        """What the released extension does, and sound versions of it."""
        if not self.exaggerates:
            return {}
        both: dict[str, Any] = {"recon_repulsion": 1e-6, "recon_attraction": 1e-6}
        contrast: dict[str, Any] = {"contrastive": 1.0, "targets": "raw", "head_step_size": 1e-8}
        hows = {
            "none": Exaggeration(),
            "reconstructions, 1e-6": Exaggeration(**both),
            "the same noise in every step": Exaggeration(same_noise=True),
            "contrastive, as released": Exaggeration(**contrast, same_noise=True),
            "contrastive, new noise": Exaggeration(**contrast),
            "contrastive, sound": Exaggeration(contrastive=0.01, targets="softmax", temperature=0.07),
            "repulsion 1, released JS": Exaggeration(repulsion=1.0),
            "repulsion 1, true JS": Exaggeration(repulsion=1.0, divergence="true js"),
            "repulsion 1, from the prior": Exaggeration(repulsion=1.0, pair="prior"),
            "repulsion 1, overlap": Exaggeration(repulsion=1.0, divergence="overlap"),
            "repulsion 1, rep_f 20": Exaggeration(repulsion=1.0, factor=20.0),
        }
        return {label: self.recipe(exaggerate=how) for label, how in hows.items()}

    def reference(self) -> dict[str, Recipe]:
        """What the original programs were also run with, on the small data sets; beforehand, for it takes long."""
        both = {name: Exaggeration(recon_repulsion=w, recon_attraction=w) for name, w in _WEIGHTS.items()}
        hows = {f"reconstructions, {name}": how for name, how in both.items()}
        hows["recon_repulsion, 1e-2"] = Exaggeration(recon_repulsion=1e-2)
        hows["recon_repulsion, .1"] = Exaggeration(recon_repulsion=0.1)
        hows["recon_repulsion, 1e-2, rep_f 20"] = Exaggeration(recon_repulsion=1e-2, factor=20.0)
        hows |= {f"repulsion, JS, {name}": Exaggeration(repulsion=w) for name, w in {**_WEIGHTS, "100": 100.0}.items()}
        hows["repulsion, KL, 1"] = Exaggeration(repulsion=1.0, divergence="kl")
        return {label: self.recipe(exaggerate=how) for label, how in hows.items()}

    def stiff(self) -> dict[str, Recipe]:
        """The published strength of synaptic intelligence on features, and a smaller one."""
        made = {"1e8": replace(self, si=True, c=1e8, gates=0.6), "1e4": replace(self, si=True, c=1e4)}
        return {f"BI-R + SI, c {name}": p.recipe() for name, p in made.items()}


_WEIGHTS = {"1e-6": 1e-6, "1e-2": 1e-2, ".1": 0.1, "1": 1.0}


def _ewc(p: BrainReplayChapter) -> Recipe:
    settings = EWCSettings(p.protocol.ewc[p.scenario], fisher="sampled", fisher_samples=1000)
    return p.trained("ewc", settings, p.plain())


METHODS: dict[str, Any] = {
    "none": lambda p: p.trained("naive", None, p.plain()),
    "joint": lambda p: p.trained("joint", None, p.plain()),
    "LwF": lambda p: p.trained("generative", GenerativeReplaySettings(replay="current"), p.plain()),
    "SI": lambda p: p.trained("si", SISettings(p.protocol.c[p.scenario]), p.plain()),
    "EWC": _ewc,
    "s-GR": lambda p: p.separate(),
    "BI-R": lambda p: replace(p, si=False).recipe(),
    "BI-R + SI": lambda p: replace(p, si=True).recipe(),
}


DEFAULTS: dict[str, dict[str, Any]] = {
    "smoke": {
        "seeds": 2,
        "other_seeds": 1,
        "iters": 8,
        "light_iters": 3,
        "batch_size": 16,
        "hidden": 30,
        "latent": 8,
        "strengths": (0.1,),
        "workers": 1,
        "others": ("digits; task", "permuted digits; domain", "convolved digits; class"),
    },
    "quick": {},
    "paper": {
        "seeds": 10,
        "other_seeds": 5,
        "light_iters": None,
        "experiment": "CIFAR-100",
        "order": "drawn",
        "others": ("CIFAR-100; task", "split MNIST; class", "split MNIST; task", "permuted MNIST; domain"),
    },
}
