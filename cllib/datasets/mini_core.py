"""mini-CORe: films of handwritten digits in drawn surroundings, with the structure of CORe50 and no download.

50 objects are 10 digits x 5 different samples of scikit-learn's digits (class 5 * digit + j, so that a digit is a
category). A session has its own colours and texture; a clip is a smooth turn, zoom and shift of one object in it.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cllib.datasets import digits
from cllib.datasets.clips import EACH, TEST, TRAIN, Clip, Clips
from cllib.errors import whole
from cllib.randomness import generator

SIDE = 32  # pixels
OTHERS = 10  # samples of each digit that are only pretrained on
CATEGORIES = tuple("0123456789")
NAMES = tuple(digit + sample for digit in CATEGORIES for sample in "abcde")
SESSIONS = tuple(sorted(TRAIN + TEST))


def load(frames: int = 12, first_frames: int = 12, seed: int = 0) -> Clips:
    """All films, `[N, 3, 32, 32]` uint8: 50 objects in 11 sessions.

    frames: of a clip; first_frames: of the clips that make the first batch of a NICv2 stream (session 1, the first
    object of each category); seed: draws sessions and movements, not which samples are objects.
    """
    whole("frames", frames, 1)
    whole("first_frames", first_frames, 1)
    objects, styles = samples()[0], {s: style(generator(seed, f"mini-core session {s}")) for s in SESSIONS}
    images, clips, row = [], [], 0
    for session in SESSIONS:
        for label in range(len(objects)):
            count = first_frames if session == TRAIN[0] and label % EACH == 0 else frames
            moves = sweep(count, generator(seed, f"mini-core clip {session} {label}"))
            images.append(render(objects[label].expand(count, 1, -1, -1), moves, *styles[session]))
            clips.append(Clip(label, session, tuple(range(row, row + count))))
            row += count
    return Clips("mini-CORe", torch.cat(images), tuple(clips), NAMES, CATEGORIES, TRAIN, TEST)


@cache
def samples() -> tuple[Tensor, Tensor]:
    """The 50 objects, `[50, 1, 8, 8]`, and 100 other samples of the same digits, `[100, 1, 8, 8]`."""
    x, y = digits.load()
    of_digit = [x[y == digit].view(-1, 1, 8, 8) for digit in range(10)]
    objects = torch.cat([own[:EACH] for own in of_digit])
    return objects, torch.cat([own[EACH : EACH + OTHERS] for own in of_digit])


def style(draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A session's looks: two colours `[3, 1, 1]`, far enough apart, and a texture `[3, S, S]`."""
    while True:
        figure, ground = torch.rand(2, 3, 1, 1, generator=draws)
        if (figure - ground).abs().sum() > 0.9:
            break
    coarse = torch.rand(1, 3, 4, 4, generator=draws) - 0.5
    texture = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)[0]
    return figure, ground, 0.2 * texture


def sweep(frames: int, draws: torch.Generator) -> Tensor:
    """A smooth movement: affine maps `[frames, 2, 3]` from one random pose to another."""
    poses = torch.rand(2, 4, generator=draws) * 2 - 1  # turn, zoom, shift right, shift down
    along = torch.linspace(0, 1, frames)[:, None]
    turn, zoom, right, down = (poses[0] * (1 - along) + poses[1] * along).T
    angle, scale = turn * math.pi / 9, 1.35 * 1.2**zoom  # at most 20 degrees; a larger scale is a smaller object
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, -sin, 0.25 * right, sin, cos, 0.25 * down], 1)
    return rows.view(-1, 2, 3)


def render(glyphs: Tensor, moves: Tensor, figure: Tensor, ground: Tensor, texture: Tensor) -> Tensor:
    """Glyphs `[n, 1, 8, 8]` in [0, 1], moved and coloured, alike or each for itself: `[n, 3, S, S]` uint8."""
    grid = F.affine_grid(moves, [len(glyphs), 1, SIDE, SIDE], align_corners=False)
    large = F.interpolate(glyphs, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    ink = F.grid_sample(large, grid, align_corners=False)  # [n, 1, S, S]
    picture = ink * figure + (1 - ink) * (ground + texture)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def others(count: int, seed: int = 0, plain: bool = False) -> tuple[Tensor, Tensor]:
    """Pictures of the 100 samples that are no objects, each in surroundings of its own: `[count, 3, S, S]`, `[count]`.

    What the small backbones are pretrained on; no object and no session of the films is among them. plain: all in white
    on black.
    """
    draws, glyphs = generator(seed, "mini-core others"), samples()[1]
    y = torch.randint(len(glyphs), (count,), generator=draws)
    moves = torch.cat([sweep(1, draws) for _ in range(count)])
    if plain:
        return render(glyphs[y], moves, torch.ones(3, 1, 1), torch.zeros(3, 1, 1), torch.zeros(3, 1, 1)), y
    looks = [torch.stack(part) for part in zip(*(style(draws) for _ in range(count)), strict=True)]
    return render(glyphs[y], moves, *looks), y
