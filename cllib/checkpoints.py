"""A run's state on disk: written whole or not at all, and refused unless it is intact and belongs to the run.

The file is `torch.save` of {"format", "run", "digest", "state"}: plain values and tensors, so that
`torch.load(path, weights_only=True)` reads it.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cllib.datasets.files import write_atomic
from cllib.errors import UserError, whole

FORMAT = 1
# Of a run's time, what its checkpoints may take: half of the promised percent, for one may cost twice the last.
SHARE = 0.005

State = dict[str, Any]


def digest(state: Any) -> str:
    """SHA-256 over a tree of dicts, lists, tuples, tensors and plain values: names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for piece in pieces(state):
        sha.update(piece)
    return sha.hexdigest()


def pieces(value: Any) -> Iterator[Any]:
    """The bytes that stand for a tree. Raises TypeError for what a checkpoint cannot hold."""
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, dict):
        yield f"dict{len(value)}".encode()
        for key, item in value.items():
            yield json.dumps(key).encode()
            yield from pieces(item)
    elif isinstance(value, list | tuple):
        yield f"list{len(value)}".encode()
        for item in value:
            yield from pieces(item)
    elif value is None or isinstance(value, bool | int | float | str):
        yield json.dumps(value).encode()
    else:
        raise TypeError(
            f"{type(value).__name__} in a state: only tensors, numbers, texts, None, dicts and lists may be"
        )


def write(path: Path, state: State, run: str) -> None:
    """Save the state of a run. Raises UserError, with the last checkpoint untouched, if it cannot be written whole."""
    content = {"format": FORMAT, "run": run, "digest": digest(state), "state": state}
    buffer = io.BytesIO()  # torch.save hides what went wrong with a file
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def read(path: Path, run: str) -> State:
    """The state of a run. Raises UserError naming a file that is torn, of another run, or of a newer format."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["format"]
        owner, sealed, state = (content.get(name) for name in ("run", "digest", "state"))
    except Exception as error:  # damaged bytes run into anything: torch's own assertions among others
        reason = (str(error).splitlines() or [""])[0][:120]
        raise UserError(
            f"{path}: torn, or no checkpoint that this version can read ({reason}); delete it to start the run over"
        ) from error
    if type(version) is not int or version != FORMAT:
        raise UserError(
            f"{path}: checkpoint of format {version!r}, this version of cllib reads {FORMAT}; use the version that "
            "wrote it, or delete it to start the run over"
        )
    if owner != run:
        raise UserError(f"{path}: checkpoint of another run, {owner!r} instead of {run!r}; it does not belong here")
    if not isinstance(state, dict) or sealed != digest(state):
        raise UserError(f"{path}: damaged, its content does not match its digest; delete it to start the run over")
    return dict(state)


def clean(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder nobody else writes to."""
    for orphan in folder.glob(".*.tmp"):
        orphan.unlink(missing_ok=True)


class Keeper:
    """When a run is saved, and where.

    Args:
        path: of the checkpoint; run: the run's address, which it must carry.
        every: save after so many steps and at every border of experiences. None: at steps and borders alike, as soon as
            all saving so far has taken less than `SHARE` of the time.
        keep: also save at the end of the run.
        copied: called with the path of every checkpoint written, to take a copy elsewhere; its time counts as saving.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        every: int | None = None,
        keep: bool = True,
        copied: Callable[[Path], None] | None = None,
    ) -> None:
        if every is not None:
            whole("checkpoint_every", every, 1)
        self.path, self.run, self.every, self.keep, self.copied = path, run, every, keep, copied
        self.begin, self.spent, self.last = time.perf_counter(), 0.0, 0.0

    def load(self) -> State | None:
        """The state to go on from; None at the start of a run."""
        return read(self.path, self.run) if self.path.exists() else None

    def due(self, step: int, border: bool = False) -> bool:
        """Whether to save after this step of an experience."""
        if self.every is not None:
            return border or step % self.every == 0
        elapsed = time.perf_counter() - self.begin
        return self.spent + self.last <= SHARE * elapsed and elapsed > 1

    def tidy(self) -> None:
        """Remove the checkpoint of a finished run, unless it is kept."""
        if not self.keep:
            self.path.unlink(missing_ok=True)

    def save(self, state: State) -> None:
        """Write the checkpoint, and note what it cost."""
        begin = time.perf_counter()
        write(self.path, state, self.run)
        if self.copied is not None:
            self.copied(self.path)
        self.last = time.perf_counter() - begin
        self.spent += self.last
