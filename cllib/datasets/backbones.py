"""Frozen, pre-trained image networks: pixels in [0, 1] to feature vectors."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cllib.datasets.files import hash_arrays
from cllib.errors import UserError, within

DEFAULT = "resnet18.tv_in1k"  # torchvision's ImageNet ResNet-18 as timm has it
TORCHVISION = "torchvision/resnet18"
HUB_FILE = "model.safetensors"
PRETRAINED, RANDOM = "pretrained", "random"  # beside the path of a file
MIN_SIDE = 16  # pixels: below, nothing is left after a network's first layers


@dataclass(frozen=True)
class Backbone:
    """A frozen network and how its input is prepared: side of the square image in pixels, mean and std per channel."""

    name: str
    model: nn.Module
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_hash: str

    def __call__(self, x: Tensor) -> Tensor:
        """x: [n, 3, H, W] float in [0, 1], on the model's device. Returns features [n, D]."""
        x = interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)  # 1.4 times faster convolutions on a CPU
        with torch.no_grad():
            features: Tensor = self.model(x)
        return features


def backbone(
    name: str = DEFAULT,
    weights: str | Path = PRETRAINED,
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """The network `name` of timm, or torchvision/resnet18, without its classifier, in eval mode.

    weights: "pretrained" (cached, or downloaded once), the path of a local checkpoint of that whole timm network,
    classifier included (.safetensors, .pth, .bin; read with weights_only), or, for tests only, "random" from `seed`.
    image_size: pixels, where it shall differ from the size the weights were trained for. Raises `UserError`, one
    line, for an unknown network, weights that do not fit, or weights that are neither cached nor reachable.
    """
    with torch.random.fork_rng(devices=[]):  # building a network draws numbers: leave the caller's alone
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed a GPU for good
        if name == TORCHVISION:
            model, size, mean, std = _torchvision_resnet18(weights)
        else:
            model, size, mean, std = _timm(name, weights)
    if image_size is not None:
        within("image_size", image_size, MIN_SIDE)
        size = image_size
        if hasattr(model, "set_input_size"):  # vision transformers: positions are interpolated
            model.set_input_size(img_size=size)
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Backbone(name, model, size, mean, std, hash_arrays(*model.state_dict().values()))


Parts = tuple[Any, int, tuple[float, ...], tuple[float, ...]]


def _torchvision_resnet18(weights: str | Path) -> Parts:
    from torchvision.models import ResNet18_Weights, resnet18

    if weights not in (PRETRAINED, RANDOM):
        raise UserError(f"weights = {str(weights)!r}: a local file goes with the same network's timm name, {DEFAULT}")
    choice = ResNet18_Weights.IMAGENET1K_V1
    model = _loaded(TORCHVISION, weights, lambda: resnet18(weights=choice if weights == PRETRAINED else None))
    model.fc = nn.Identity()
    prepare = choice.transforms()
    return model, prepare.crop_size[0], tuple(prepare.mean), tuple(prepare.std)


def _timm(name: str, weights: str | Path) -> Parts:
    import timm
    from timm.data.config import resolve_data_config

    if not timm.is_model(name):
        raise UserError(f"backbone = {name!r}: allowed are {TORCHVISION} and the names of timm.list_models()")
    file = None if weights == RANDOM else _hub_file(name) if weights == PRETRAINED else _local_file(weights)
    overlay = {"file": str(file), "custom_load": False} if file else None
    model = _loaded(name, weights, lambda: timm.create_model(name, bool(file), pretrained_cfg_overlay=overlay))
    model.reset_classifier(0)  # only now: with its classifier, timm insists that every weight is in the file
    config = resolve_data_config({}, model=model)
    return model, config["input_size"][-1], config["mean"], config["std"]


def _loaded(name: str, weights: str | Path, build: Callable[[], nn.Module]) -> Any:
    try:
        return build()
    except Exception as error:  # network, file, pickle, safetensors and shape errors; torch's run over many lines
        raise UserError(f"backbone {name}: {weights} weights cannot be loaded ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def _local_file(weights: str | Path) -> Path:
    if not Path(weights).is_file():
        raise UserError(f"weights = {str(weights)!r}: no such file; allowed are {PRETRAINED}, {RANDOM} or a file")
    return Path(weights)


def _hub_file(name: str) -> str:
    import timm
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    config = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    if config is None or config.hf_hub_id is None:
        raise UserError(f"backbone {name}: timm lists no pre-trained weights for it; give a local file as weights")
    cached = try_to_load_from_cache(config.hf_hub_id, HUB_FILE)
    if isinstance(cached, str):
        return cached
    try:
        get_session().head(constants.ENDPOINT, timeout=5)  # one try: offline, the download alone retries for 25 s
        return hf_hub_download(config.hf_hub_id, HUB_FILE)
    except Exception as error:  # requests', httpx' or the hub's own, by its version
        raise UserError(
            f"backbone {name}: weights are not cached and {config.hf_hub_id} cannot be downloaded "
            f"({_one_line(error)}); go online once, or give a local file as weights"
        ) from error
