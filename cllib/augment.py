"""Images changed at random, a little: `[B, C, H, W]` in [0, 1] to the same."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from cllib.errors import UserError, one_of

AUGMENTS = ("none", "shift", "crop", "published", "published large")
LIGHT = {"published": "crop", "published large": "resized crop"}  # what BiRT stores representations of
RANDAUGMENT = "rand-m9-mstd0.5-inc1"  # timm's name for what BiRT trains with
STRONGEST = 9.999  # of 10: at 10 "posterize" leaves no bit of a pixel, which Pillow refuses


def augmented(x: Tensor, kind: str, draws: torch.Generator) -> Tensor:
    """shift: moved by up to one pixel, black comes in; crop: the same by up to 4; published: crop, flip, RandAugment.

    "published large", for images of more than 32 pixels, cuts out and enlarges a random part instead of moving. Random
    numbers come from `draws` alone.
    """
    if kind == "none":
        return x
    if kind in ("shift", "crop"):
        return moved(x, 1 if kind == "shift" else 4, draws)
    if kind == "resized crop":
        return recut(x, draws)
    one_of("augment", kind, AUGMENTS)
    return randaugmented(flipped(augmented(x, LIGHT[kind], draws), draws), draws)


def moved(x: Tensor, most: int, draws: torch.Generator) -> Tensor:
    """Every image moved by up to so many pixels in both directions."""
    b, _, height, width = x.shape
    down, right = torch.randint(2 * most + 1, (2, b, 1), generator=draws).to(x.device)
    rows, columns = (at + torch.arange(n, device=x.device) for at, n in ((down, height), (right, width)))  # [B, H]
    grid = F.pad(x, [most] * 4).permute(0, 2, 3, 1)[
        torch.arange(b, device=x.device)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return grid.permute(0, 3, 1, 2).contiguous()


def flipped(x: Tensor, draws: torch.Generator) -> Tensor:
    """Every other image mirrored, on average."""
    chosen = (torch.rand(len(x), generator=draws) < 0.5).to(x.device)
    return torch.where(chosen[:, None, None, None], x.flip(-1), x)


def recut(x: Tensor, draws: torch.Generator) -> Tensor:
    """A part of every image, enlarged: 8 to 100 % of it, sides 3:4 to 4:3 (torchvision's RandomResizedCrop)."""
    from torchvision.transforms import RandomResizedCrop

    def one(image: Tensor) -> Tensor:
        place = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        top, left, height, width = place
        part = image[None, :, top : top + height, left : left + width]
        size = (x.shape[-2], x.shape[-1])
        return F.interpolate(part, size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)

    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
        return torch.stack([one(image) for image in x])


def randaugmented(x: Tensor, draws: torch.Generator) -> Tensor:
    """Two of timm's changes of colour or shape to every image, on the CPU."""
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform  # slow to import
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    if x.shape[1] != 3:
        raise UserError(f"augment = 'published': takes colour images, not {x.shape[1]} channels")
    how: dict[str, float] = {"translate_const": int(x.shape[-1] * 0.45), "magnitude_max": STRONGEST}
    how["interpolation"] = Image.Resampling.BICUBIC
    change = rand_augment_transform(RANDAUGMENT, how)
    before = random.getstate()
    random.seed(int(torch.randint(2**62, (), generator=draws)))  # timm draws from Python's own generator
    try:
        made = [pil_to_tensor(change(to_pil_image(image))) for image in x.cpu()]
    finally:
        random.setstate(before)
    return torch.stack(made).to(x.device, x.dtype) / 255
