"""Pickles from elsewhere, read without running what they name."""

import pickle
from pathlib import Path
from typing import Any

from cllib.errors import UserError

ARRAY_GLOBALS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),  # arrays in pickle protocol 5
    ("_codecs", "encode"),  # bytes in pickle protocols 0 to 2
}


class ArraysOnly(pickle.Unpickler):
    """A pickle can call any function it names: admit what rebuilds numpy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # numpy 1 wrote the former, numpy 2 has the latter
        if (module, name) not in ARRAY_GLOBALS:
            raise UserError(f"forbidden global {module}.{name}, only numpy arrays may be in it")
        return super().find_class(module, name)


def unpickle(path: Path) -> Any:
    """Containers, plain values and numpy arrays from a pickle; `UserError` names one that is torn or holds more."""
    try:
        with open(path, "rb") as file:
            return ArraysOnly(file, encoding="latin1").load()  # latin1: the known files come from Python 2
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a torn or scrambled pickle fails in as many ways as there are opcodes
        raise UserError(f"{path}: unreadable or truncated pickle ({type(error).__name__}: {error})") from error
