"""Backbone features of noisy images, computed once and kept on disk under the hash of everything they depend on."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from cllib.datasets.backbones import Backbone
from cllib.datasets.files import cache_folder, hash_arrays, set_aside, writable_folder, write_atomic
from cllib.datasets.images import to_float
from cllib.datasets.noise import EFFECTIVE_STD, add_noise, noise_generator
from cllib.errors import within


def extract(
    images: Tensor,
    net: Backbone,
    noise: Sequence[float] = EFFECTIVE_STD,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "cpu",
    batch_size: int = 32,
    progress: bool = True,
) -> Tensor:
    """Features of every noise version of the images: [V, N, D] float32, V = len(noise).

    images: [N, H, W, 3] uint8. noise: effective standard deviations on pixels in [0, 1]. folder: the cache
    (`files.cache_folder()` if None), one file per version, so that a stopped extraction goes on where it was. The same
    images, noise, seed, network, weights and input size read the same bits back; a damaged file is set aside with a
    warning and computed again. Raises `UserError` for an impossible number or an unwritable folder.
    """
    within("batch_size", batch_size, 1)
    folder = writable_folder(folder or cache_folder())
    pixels, versions = hash_arrays(images), []
    for std in noise:
        compute = partial(_compute, images, net, std, seed, device, batch_size, progress)
        notes = {"device": device, "torch": torch.__version__}
        versions.append(cached(describe(pixels, net, std, seed), compute, folder, notes))
    return torch.stack(versions)


def cached(
    told: dict[str, str], compute: Callable[[], Tensor], folder: Path, notes: Mapping[str, str] | None = None
) -> Tensor:
    """What `compute` gives, from the folder where it was computed before.

    told: everything it depends on, in words and hashes; notes: what else is written down. A damaged file is set aside
    with a warning. Raises `UserError` for an unwritable folder.
    """
    path = writable_folder(folder) / f"features-{_digest(told)}.safetensors"
    features = _read(path, told)
    if features is None:
        features = compute()
        _write(path, features, {**told, **(notes or {})})
    return features


def describe(pixels: str, net: Backbone, std: float, seed: int) -> dict[str, str]:
    """Everything the features of one version depend on; the original (std 0) does not depend on the seed."""
    within("noise", std, 0)
    return {
        "images": pixels,
        "noise": f"{float(std)} seed {seed}" if std else "none",
        "backbone": net.name,
        "weights": net.weights_hash,
        "input": f"{net.image_size} mean {net.mean} std {net.std}",
    }


def _compute(
    images: Tensor, net: Backbone, std: float, seed: int, device: str, batch_size: int, progress: bool
) -> Tensor:
    net.model.to(device)
    draws, features = noise_generator(seed, std), []
    with tqdm(total=len(images), desc=f"{net.name}, noise {std:g}", unit="image", disable=not progress) as bar:
        for batch in images.split(batch_size):
            x = add_noise(to_float(batch), std, draws)  # [n, 3, H, W]
            features.append(net(x.to(device)).float().cpu())  # [n, D]
            bar.update(len(batch))
    return torch.cat(features)


def _digest(metadata: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:16]


def _write(path: Path, features: Tensor, metadata: dict[str, str]) -> None:
    sealed = metadata | {"seal": _seal(metadata, features)}
    record = {"record": json.dumps(sealed, sort_keys=True)}  # one entry: safetensors writes several in random order
    write_atomic(path, save({"features": features.contiguous()}, record))


def _seal(metadata: dict[str, str], features: Tensor) -> str:
    return _digest(metadata | {"features": hash_arrays(features)})


def _read(path: Path, told: dict[str, str]) -> Tensor | None:
    """The features in an intact file; None, with the file set aside, for a damaged one; None if there is none."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata, features = json.loads(file.metadata()["record"]), file.get_tensor("features")
        seal = metadata.pop("seal")
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        set_aside(path, str(error))
        return None
    if seal != _seal(metadata, features) or any(metadata.get(name) != value for name, value in told.items()):
        set_aside(path, "its content does not match the hash it was written with")
        return None
    return features
