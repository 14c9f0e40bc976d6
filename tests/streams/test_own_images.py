"""The page "Bring your own images": its Python is run as it stands, on a folder made here."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cllib.errors import UserError
from cllib.notebooks import BOOK
from cllib.streams import from_folder

PAGE = BOOK / "own_images.md"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `my_images`, four classes of five pictures."""
    for k, name in enumerate(("birds", "cats", "dogs", "trams")):
        folder = tmp_path / "my_images" / name
        folder.mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((30, 40, 3), 50 * k + i, np.uint8)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_says_what_works(here: Path, capsys: pytest.CaptureFixture[str], one_thread: None) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("naive", "er"))] == ["naive", "er"]


def test_a_folder_is_a_stream_in_one_call(here: Path) -> None:
    stream = from_folder("my_images", experiences=2, order_seed=3, train_size=2)
    assert (stream.shape, stream.classes, len(stream.experiences)) == ((3, 32, 32), 4, 2)
    assert [len(task) for task in stream.experiences] == [4, 4]
    assert from_folder("my_images", 4, "domain", 16).shape == (3, 16, 16)


def test_what_cannot_be_is_said_in_one_line(here: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        from_folder("elsewhere")
    with pytest.raises(UserError, match="4 classes divide into 1, 2, 4"):
        from_folder("my_images", experiences=3)
