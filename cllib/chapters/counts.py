"""Numbers of chapter 3 that follow from its rules alone, for the sizes of the released program: nothing is trained."""

import numpy as np
import torch

from cllib.attention import discard
from cllib.datasets import core50
from cllib.datasets.clips import EACH, TRAIN, Clip
from cllib.feeds import portion
from cllib.learners.cwr import consolidate
from cllib.memory import encode, quota
from cllib.models.latent_vit import LatentViT, macs, structure
from cllib.streams import Stream
from cllib.streams.nicv2 import PER_BATCH, deal, prep, seen

Counts = dict[str, float]
STORED, BATCHES = 1500, 391  # R, and batches of the longest stream
WORKED = ((100, 300), (100, 293), (100, 299), (100, 600), (100, 1500), (128, 300), (7, 300))  # mb, N
PRESETS = ((30, 60, 120), (40, 24, 200), (36, 12, 400))  # mb, N, R of the small streams
CUTS = (
    ("b16", 12, 12, "tokens"),
    ("b16", 12, 6, "tokens"),
    ("b32", 12, 12, "tokens"),
    ("l32", 24, 24, "tokens"),
    ("l16", 24, 24, "tokens"),
    ("b16", 12, 12, "cls"),
)


def full_size(backbone: str, depth: int, replay_block: int, store: str = "tokens") -> LatentViT:
    """A backbone at 128 pixels; nothing is loaded."""
    return LatentViT(backbone, 128, depth, replay_block, store, weights="random")


def architecture() -> Counts:
    """Parameters, tensors, multiplications."""
    made: Counts = {}
    for cut in CUTS[:3]:
        parts = structure(full_size(*cut), 50)
        what = what_of(cut)
        made[f"{what}: parameters"] = sum(part.count for part in parts)
        made[f"{what}: of them learn"] = sum(part.count for part in parts if not part.frozen)
    tiny, big = structure(LatentViT(weights="random"), 50), structure(full_size("b16", 12, 12), 50)
    blocks = {name: macs(full_size(name, 12, 11), 0, 1) / 3 for name in ("b16", "b32")}
    return made | {
        "parameters of a block, b16": full_size("b16", 12, 12).size.block_parameters,
        "entries of the state dict, D = 12": sum(part.entries for part in big),
        "parameters of the tiny backbone with 50 outputs": sum(part.count for part in tiny),
        "of them learn, D = 6, F = 4": sum(part.count for part in tiny if not part.frozen),
        "MACs of a block, B/16 at 128, millions": blocks["b16"] / 1e6,
        "MACs of a block, B/32 at 128, millions": blocks["b32"] / 1e6,
        "MACs of the patches, B/16 at 128, millions": (macs(full_size("b16", 1, 1), 1, 0) - blocks["b16"]) / 1e6,
    }


def storage() -> Counts:
    """What the buffer takes in single precision."""
    made: Counts = {}
    for cut in CUTS:
        what, latent = what_of(cut), encode(torch.zeros(1, *full_size(*cut).latent_shape), "float32")["x"]
        made |= {f"{what}: numbers a sample": latent.numel(), f"{what}: KiB": latent.nbytes / 2**10}
        made[f"{what}: MiB for 1500"] = latent.nbytes * STORED / 2**20
    raw = encode(torch.zeros(1, 3, core50.SIDE, core50.SIDE), "pixels")["x"].nbytes
    made |= {"raw image of 128 x 128: KiB": raw / 2**10, "raw images: MiB for 1500": raw * STORED / 2**20}
    ratio = made[f"{what_of(CUTS[0])}: KiB"] / made["raw image of 128 x 128: KiB"]
    return made | mobilenet() | {"latent of b16 at 128, in bytes of the raw image": ratio}


def mobilenet() -> Counts:
    """Numbers that the convolutional network of AR1* stores of a sample, at its layers conv5_4/dw and pool6."""
    import timm

    with torch.device("meta"):
        network = timm.create_model("mobilenetv1_100", pretrained=False, features_only=True)
        maps = network(torch.zeros(1, 3, core50.SIDE, core50.SIDE))
    deep, last = (part.shape[1:] for part in maps[-2:])
    return {
        "MobileNetV1, conv5_4/dw: numbers a sample": deep.numel(),
        "MobileNetV1, pool6: numbers a sample": last[0],  # the mean over its places
    }


def what_of(cut: tuple[str, int, int, str]) -> str:
    """How a cut is called in the tables."""
    return "{} at 128, D={}, F={}, {}".format(*cut)


def mini_batches() -> Counts:
    """How new and stored samples share mini-batches (`feeds.portion`)."""
    made: Counts = {}
    for mb, n, r in (*((mb, n, STORED) for mb, n in WORKED), *PRESETS):
        part, what = portion(n, r, mb), f"mb = {mb}, N = {n}, R = {r}"
        made |= {f"{what}: new a step": part.new, f"{what}: steps": part.steps}
        made |= {f"{what}: replayed a step": part.replayed, f"{what}: new used": part.new * part.steps}
        made[f"{what}: replayed in an epoch"] = min(r, part.replayed * part.steps)
    return made


def schedule() -> list[int]:
    """How many samples each batch of 300 puts into the buffer (`memory.quota`)."""
    return [quota(STORED, i, 300 if i else 3000, STORED) for i in range(BATCHES)]


def buffer() -> Counts:
    """What becomes of samples in the buffer."""
    h = np.array(schedule(), dtype=np.float64)
    stays = np.array([np.prod(1 - h[i + 1 :] / STORED) for i in range(BATCHES)])
    shares = {0: "samples of batch 0 at the end"} | {i: f"of batch {i}" for i in (1, 10, 100, 390)}
    made = {f"replaced after batch {i}": h[i] for i in (*range(12), 50, 100, 200, 390)}
    made |= {"replaced in all after batch 0": h[1:].sum(), "a sample of batch 0 is in it at the end": stays[0]}
    return made | {name: h[i] * stays[i] for i, name in shares.items()}


def duplicates() -> Counts:
    """Share of the newly trained row in what CWR* keeps, visited once, or as often as the class is stored (B1)."""
    made: Counts = {}
    for a in (3.16, 10.0):
        past, now = torch.tensor([a**2]), torch.ones(1)
        for times, what in ((1.0, "once"), (30.0, "30 times")):
            # A row of one number is its own mean; the second keeps that at 0.
            rows = torch.tensor([[1.0, -1.0]])
            row = consolidate(torch.zeros(1, 2), rows, past, now, torch.tensor([times]))
            made[f"{'' if made else 'share of the new row, '}a = {a:g}, {what}"] = float(row[0, 0])
    return made


def streams() -> Counts:
    """Batches of the three variants, dealt from 400 films of one frame."""
    objects = len(core50.NAMES)
    clips = [Clip(label, session, (0,)) for session in TRAIN for label in range(objects)]
    dealt = {name: deal(clips, k, range(0, objects, EACH), 0) for name, k in PER_BATCH.items()}
    made: Counts = {f"{name}: batches": len(batches) for name, batches in dealt.items()}
    first, *later = dealt["nicv2_391"]
    made["classes in the first batch"] = len({clip.label for clip in first})
    made["nicv2_391: batches that bring a class"] = len({clip.label for (clip,) in later} - {c.label for c in first})
    made["batches merged into the first, R = 1500"] = prep(1500)
    return made | {f"R = {r}": prep(r) for r in (3000, 3300, 4500)}


def official(stream: Stream, variant: str, run: int) -> Counts:
    """What can be counted on CORe50's own lists alone."""
    sizes, known = [len(part) for part in stream.experiences], seen(stream)
    made: Counts = {"images in the first batch": sizes[0], "training images": sum(sizes)}
    if "test_every" not in stream.note:
        made["every 20th test image"] = len(stream.tests[0])
    if run == 0:
        made[f"{variant}, run 0: all classes after batch"] = known.index(50)
        reached = {n: next(i for i, k in enumerate(known) if k >= n) for n in (20, 30, 40)}
        made |= {f"{variant}, run 0: {n} classes after batch": i for n, i in reached.items()}
    if variant == "nicv2_391":
        parts = [portion(size, STORED, 100) for size in sizes[1:]]
        made["nicv2_391: steps an epoch after the first batch, mb = 100"] = sum(part.steps for part in parts)
        made["nicv2_391: steps in all, mb = 100"] = 4 * (-(-sizes[0] // 100) + sum(part.steps for part in parts))
        made["nicv2_391: new images never used"] = sum(sizes[1:]) - sum(part.new * part.steps for part in parts)
        made["nicv2_391: batches of exactly 300"] = sum(size == 300 for size in sizes)
    return made


def rollout() -> Counts:
    """Entries of an attention matrix of B/16 at 128 pixels that the notebook's share of .9 drops."""
    tokens = full_size("b16", 12, 12).tokens
    descending = torch.arange(tokens**2, 0, -1.0).view(
        tokens, tokens
    )  # the first entry, which is spared, is no candidate
    return {"entries dropped of 4225 at .9": int((discard(descending, 0.9) == 0).sum())}


def counted() -> dict[str, Counts]:
    """All of them, by the experiment's name in the ledger."""
    return {
        "architecture": architecture(),
        "storage": storage(),
        "mini-batches": mini_batches(),
        "buffer, R = 1500, 391 batches": buffer(),
        "duplicate ids": duplicates(),
        "streams": streams(),
        "rollout": rollout(),
    }
