"""Where the weights lie that ship with the book, and how a file of weights is read."""

from pathlib import Path

from torch import Tensor

from cllib.errors import UserError

DATA = Path(__file__).resolve().parents[2] / "data"


def stored(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError naming it if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"weights = {str(path)!r}: cannot be read ({error})") from error
