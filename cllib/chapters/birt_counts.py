"""Numbers of chapter 5 that follow from its rules alone, for the sizes of the paper: nothing is trained."""

import torch
from scipy.stats import beta
from torch import nn

from cllib.chapters.birt_settings import IMAGENET, LARGE, SETTINGS, SMALL, TINY, Images
from cllib.feeds import per_epoch
from cllib.herding import quota
from cllib.learners.birt import BiRTSettings, rate
from cllib.models.split import Split

Counts = dict[str, float]
SAMPLES, BATCHES = 5000, 43  # images of a task of CIFAR-100 in ten; batches of both kinds in an epoch of the last tasks
STUDENTS = (0.005, 312)  # chance of attention noise a batch; batches an epoch
HALF_STEP = 2.0**-54  # a double nearer to 1 than this is 1


def built(images: Images, shape: tuple[int, ...], tasks: int, each: int) -> Split:
    """The network of a setting after so many tasks, without values."""
    with torch.device("meta"):
        network = images.network.build(shape, tasks * each)
        for _ in range(tasks):
            network.above.grow(each)
    return network


def size(module: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in module.parameters())


def numbers_of(images: Images, side: int) -> int:
    """Numbers in the representation of an image."""
    return (side // images.network.patch) ** 2 * images.network.dim


def architecture() -> Counts:
    """Parameters of g and f, and what is stored of an image."""
    one, two = (built(LARGE, (3, 32, 32), tasks, 10) for tasks in (1, 2))
    token_and_head = size(two.above) - size(one.above) - size(two.above.divergence)  # type: ignore[arg-type]
    made: Counts = {"g": size(one.below), "f, one task of ten classes": size(one.above)}
    made |= {"one task more": token_and_head, "the small network, 5 tasks": size(built(SMALL, (1, 8, 8), 5, 2))}
    made |= {"bytes of a CIFAR image": 3 * 32 * 32, "bytes of its representation": 4 * numbers_of(LARGE, 32)}
    made["... times more"] = made["bytes of its representation"] / made["bytes of a CIFAR image"]
    made |= {"numbers of an ImageNet image": 3 * 224 * 224, "numbers of its representation": numbers_of(IMAGENET, 224)}
    made["numbers of a Tiny-ImageNet representation"] = numbers_of(TINY, 64)
    return made


def memory() -> Counts:
    """Stored samples a class after every task, and the share of old classes."""
    made: Counts = {}
    for name in ("CIFAR-100-10-500", "CIFAR-100-5-500", "digits-5-100"):
        how, classes = SETTINGS[name], 10 if name.startswith("digits") else 100
        for task in range(1, how.tasks + 1):
            each = classes // how.tasks * task
            made[f"{name}: a class, after task {task}"] = quota(how.buffer, each)
    made |= {f"share of old classes, task {t} of 10": round((t - 1) / t, 3) for t in range(2, 11)}
    return made


def training() -> Counts:
    """Steps and step sizes as released."""
    how = BiRTSettings(warmup_epochs=LARGE.warmup)
    rates = {"step size": LARGE.lr, "step size of fine-tuning": LARGE.tune_lr}
    rates |= {f"step size in epoch {k}": rate(k, LARGE.epochs, how, LARGE.lr) for k in (0, 1)}
    made: Counts = {
        "images: whole batches an epoch": SAMPLES // LARGE.batch,
        "replay: batches": per_epoch(500, LARGE.batch),
    }
    return made | {f"{name}, in 1e-6": round(1e6 * value, 6) for name, value in rates.items()}


def chances() -> Counts:
    """What the released probabilities amount to."""
    law, update = beta(0.1, 0.1), SETTINGS["CIFAR-100-10-500"].ema_rate
    p, batches = STUDENTS
    seen = sum(1 - (1 - update) ** k for k in range(BATCHES)) / BATCHES
    return {
        "mixtures with .05 < lambda < .95": float(law.cdf(0.95) - law.cdf(0.05)),
        "mixtures with .2 < lambda < .8": float(law.cdf(0.8) - law.cdf(0.2)),
        "mixtures with lambda = 1 in double precision": float(law.cdf(HALF_STEP)),
        "epochs with an update of f_s": 1 - (1 - update) ** BATCHES,
        "steps that see it, before it is lost": seen,
        "students: attention noise for good after an epoch": 1 - (1 - p) ** batches,
    }


def counted() -> dict[str, Counts]:
    """All of it, by group."""
    return {"architecture": architecture(), "memory": memory(), "training": training(), "chances": chances()}
