"""Chapter 1, Memory Head: its parameters."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from cllib.chapters.common import Chapter, once
from cllib.errors import UserError, one_of, within
from cllib.learners.heads import METHODS, LearnerConfig
from cllib.models.classic import ClassicConfig
from cllib.models.memory_head import MemoryHeadConfig, query
from cllib.streams import IMAGE_STREAMS, PLANE_STREAMS, Stream, image_stream, plane_stream, thinned

MODELS = ("mh", "lp", "mlp")


@dataclass(frozen=True)
class MemoryHeadChapter(Chapter):
    """Chapter 1. Behind each knob: the paper's symbol and the original command line's flag.

    The knobs from `benchmark` on describe one experiment, the reader's own; the tables and ablations of the chapter
    use the published settings written beside them, and take from here what concerns all: seeds, device, streams.
    """

    seeds: int = 20  # runs behind every number
    seed: int = 1234  # --seed: the first one; the others follow
    streams: tuple[str, ...] = PLANE_STREAMS  # columns of the tables
    step_sizes: tuple[float, ...] = (0.001, 0.01, 0.1)  # tried for every competitor
    grid_seeds: int = 3  # runs per point of the settings grid; 0 leaves the grid out
    grid_decay: bool = False  # the printed grid's three weight decays (1152 points instead of 384)
    thin: int = 1  # every how-many-th training sample is shown
    surface_step: float = 0.02  # spacing of the decision surface's grid
    frames: int = 41  # pictures in the film of a stream
    image_seeds: int = 5
    image_stream: str = "ns-digits"
    data_dir: str | None = None  # where ns-cifar100 is downloaded to, or mini-ImageNet lies
    image_classes: int = 100  # of ns-cifar100 and ns-imagenet: only the first so many
    backbone: str = "resnet18.tv_in1k"  # frozen timm network behind ns-cifar100 and ns-imagenet
    backbone_weights: str = "pretrained"  # or the path of a local checkpoint
    backbone_size: int | None = None  # side of its input in pixels, where not the one it was trained with

    benchmark: str = "modes-cdi"  # --benchmark
    model: str = "mh"  # --model
    hidden: int = 25  # --hidden, of mlp
    bias: bool = True  # --bias
    step_size: float = 0.1  # rho, --beta_m
    weight_decay: float = 0.0  # --weight_decay
    optimizer: str = "sgd"  # --optimizer
    loss: str = "xent"  # xent | hinge | hinge_mean, --loss
    units: int = 16  # m, --key_mem_units
    top: int = 2  # delta, --delta
    distance: str = "euclidean"  # the original command line can only do cosine
    width: float = 1.0  # sigma of the euclidean response
    query: str = "identity"  # psi, --psi
    key_size: int | None = None  # d, --key_size
    key_step: float = 0.01  # beta, --beta_k
    sharpness: float = 25.0  # gamma_alpha
    match_threshold: float = 0.95  # tau_alpha
    use_threshold: int = 50  # tau_mu
    age_threshold: int = 50  # tau_eta
    memory_update: str = "WTA"  # --upd_m
    key_update: str = "ad_hoc_WTA"  # --upd_k
    scramble: bool = True  # --scramble
    random_memories: bool = False
    shared_keys: bool = True  # --shared_keys
    when: str = "POST"
    counted: str = "after"  # a batch's winners, for use and age: after the keys moved, as released, or "before"
    threshold_bug: bool = False  # the released cosine test
    method: str = "vanilla"  # --competitor
    buffer_size: int = 24  # --buffer_size
    replay_size: int = 4  # r, --buffer_batch_size
    gdumb_epochs: int = 10  # --gdumb_epochs
    ensemble_size: int = 5  # --ensembled_models
    off_by_one: bool = False  # the released reservoir
    eval_chunk: int = 10_000  # --eval_chunk_size: test samples scored at once
    track_every: int = 50  # --wandb: online accuracy is kept per this many samples, in the run record
    watch: bool = False  # --watch: also the size of every parameter after each experience
    draw_plots: bool = True  # --draw_plots: decision surfaces of this experiment (plane streams)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model", self.model, MODELS)
        one_of("benchmark", self.benchmark, PLANE_STREAMS + IMAGE_STREAMS)
        one_of("image_stream", self.image_stream, IMAGE_STREAMS)
        for stream in self.streams:
            one_of("streams", stream, PLANE_STREAMS)
        if len(set(self.streams)) < len(self.streams):
            raise UserError(f"streams = {self.streams!r}: each may be named once")
        if "ns-imagenet" in (self.benchmark, self.image_stream) and not (
            self.data_dir and Path(self.data_dir).is_dir()
        ):
            raise UserError(f"data_dir = {self.data_dir!r}: ns-imagenet needs the folder that holds mini-ImageNet")
        if all(stream.endswith("-iid") for stream in self.streams):
            raise UserError(f"streams = {self.streams!r}: at least one must be continual, not iid")
        for name in ("image_seeds", "eval_chunk", "track_every", "frames", "image_classes", "thin"):
            within(name, getattr(self, name), 1)
        within("grid_seeds", self.grid_seeds, 0)
        within("surface_step", self.surface_step, 0.005, 0.5)
        if not self.step_sizes:
            raise UserError("step_sizes is empty: give at least one step size, a number above 0")
        for step_size in self.step_sizes:
            within("step_sizes", step_size, 1e-12)
        self._check_query(self.experiment())

    def _check_query(self, config: LearnerConfig) -> None:
        """Raise UserError if psi cannot take the benchmark's inputs (the size of features is not known yet)."""
        inputs = 2 if self.benchmark in PLANE_STREAMS else 64 if self.benchmark == "ns-digits" else None
        if inputs is not None and isinstance(config.head, MemoryHeadConfig):
            query(torch.zeros(1, 1, inputs), config.head)

    def experiment(self) -> LearnerConfig:
        """The reader's own experiment. Raises UserError for a value its parts refuse."""
        one_of("method", self.method, METHODS)
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        memory_head = MemoryHeadConfig(**{f.name: given[f.name] for f in fields(MemoryHeadConfig)})
        head = memory_head if self.model == "mh" else ClassicConfig(self.model, self.hidden, self.bias)
        return LearnerConfig(head, **{f.name: given[f.name] for f in fields(LearnerConfig) if f.name != "head"})

    def single(self, seed: int) -> tuple[Stream, LearnerConfig]:
        """The stream and the learner of one run of it. Raises UserError for data not at hand."""
        network = self.backbone, self.backbone_weights, self.backbone_size
        stream = once(benchmark_stream, self.benchmark, self.thin, self.data_dir, network, self.image_classes)
        return stream, self.experiment()


def benchmark_stream(
    name: str, thin: int, data_dir: str | None, network: tuple[str, str, int | None], classes: int
) -> Stream:
    """One of the chapter's streams, every so many-th training sample of it."""
    whole = plane_stream(name) if name in PLANE_STREAMS else image_stream(name, data_dir, *network, classes)
    return thinned(whole, thin)


DEFAULTS: dict[str, dict[str, Any]] = {
    "smoke": {
        "seeds": 2,
        "streams": ("modes-cdi",),
        "step_sizes": (0.1,),
        "grid_seeds": 0,
        "thin": 10,
        "surface_step": 0.1,
        "frames": 5,
        "image_seeds": 2,
    },
    "quick": {},
    "paper": {
        "seeds": 50,
        "grid_decay": True,
        "surface_step": 0.01,
        "image_stream": "ns-cifar100",
        "image_seeds": 5,
    },
}
