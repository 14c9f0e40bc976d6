"""Images that come as clips, short films of one object in one session: what NICv2 streams are made from."""

from dataclasses import dataclass

from torch import Tensor

EACH = 5  # objects in a category
TRAIN, TEST = (1, 2, 4, 5, 6, 8, 9, 11), (3, 7, 10)  # sessions of CORe50, and of what is made after it


@dataclass(frozen=True)
class Clip:
    """One film. label: the object; session: where it was taken, counted from 1; frames: rows of the images."""

    label: int
    session: int
    frames: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Clips:
    """All films of some objects.

    images: `[N, 3, H, W]` uint8; names: of the objects, category by category, each with as many; categories: their
    names; train, test: the sessions of either.
    """

    name: str
    images: Tensor
    clips: tuple[Clip, ...]
    names: tuple[str, ...]
    categories: tuple[str, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def each(self) -> int:
        """Objects in a category."""
        return len(self.names) // len(self.categories)

    def of(self, sessions: tuple[int, ...]) -> list[Clip]:
        """The films of some sessions."""
        return [clip for clip in self.clips if clip.session in sessions]
