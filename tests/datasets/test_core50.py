"""CORe50 in its official files: miniatures of them, and what is refused."""

import hashlib
import os
import pickle
import shutil
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cllib.datasets import core50
from cllib.datasets.clips import Clip, Clips
from cllib.datasets.core50 import Frame
from cllib.errors import UserError
from cllib.streams.nicv2 import PER_BATCH, NICv2, deal, seen

ALL, FEW = range(1, 51), (1, 6, 8)  # objects, counted from 1
PICKLES = ("paths.pkl", "LUP.pkl", "labels.pkl")
Lists = dict[str, Any]  # what each of the pickles holds


def file(session: int, thing: int, number: int) -> str:
    return f"s{session}/o{thing}/C_{session:02}_{thing:02}_{number:03}.png"


def colour(session: int, label: int, number: int) -> tuple[int, int, int]:
    """What a frame is filled with: no two the same."""
    return 20 * session, 5 * label, 40 * number


def lists(things: Iterable[int], frames: int, runs: int) -> Lists:
    """The three official files for a few objects, in an order of frames that is not sorted."""
    films = [(s, o) for s in (7, 10, 3, 11, 1, 2, 4, 5, 6, 8, 9) for o in things]
    paths = [file(s, o, k) for s, o in films for k in range(frames)]
    rows = {film: list(range(frames * k, frames * k + frames)) for k, film in enumerate(films)}
    first = [(1, o) for o in things if o % 5 == 1]
    others = [film for film in films if film[0] in core50.TRAIN and film not in first]
    test = [film for film in films if film[0] in core50.TEST]
    batches: Lists = {variant: [] for variant in core50.VARIANTS}
    for variant, per_batch in PER_BATCH.items():
        for run in range(runs):
            order = np.random.default_rng(run).permutation(len(others))
            dealt = [[others[k] for k in order[j : j + per_batch]] for j in range(0, len(others), per_batch)]
            parts = [[k for film in part for k in rows[film]] for part in (first, *dealt, test)]
            batches[variant].append([*(part[::-1] for part in parts[:-1]), parts[-1]])
    labels = {
        variant: [[[int(paths[k][-10:-8]) - 1 for k in part] for part in run] for run in chosen]
        for variant, chosen in batches.items()
    }
    return {"paths.pkl": paths, "LUP.pkl": batches, "labels.pkl": labels}


def write(root: Path, content: Lists, protocol: int = 4) -> None:
    for name, held in content.items():
        (root / name).write_bytes(pickle.dumps(held, protocol))


def draw(root: Path, content: Lists) -> None:
    """Save every frame that is named."""
    for name in content["paths.pkl"]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        session, thing, number = map(int, path.stem.split("_")[1:])
        Image.new("RGB", (128, 128), colour(session, thing - 1, number)).save(path, compress_level=1)


@pytest.fixture(scope="module")
def frames_of_all(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lists]:
    """All 50 objects, two frames of each in each of the 11 sessions."""
    root, content = tmp_path_factory.mktemp("all"), lists(ALL, 2, 2)
    write(root, content)
    draw(root, content)
    return root, content


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three objects, three frames in each session: their pictures alone."""
    root = tmp_path_factory.mktemp("few")
    draw(root, lists(FEW, 3, 2))
    return root


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lists:
    """The lists of three objects in tmp_path, with checksums of their own; nothing can be downloaded."""
    content = lists(FEW, 3, 2)
    write(tmp_path, content)
    for name in (*PICKLES, core50.ARCHIVE):
        md5 = hashlib.md5((tmp_path / name).read_bytes()).hexdigest() if name in PICKLES else "0" * 32
        monkeypatch.setitem(core50.FILES, name, (f"http://127.0.0.1:9/{name}", md5))
    monkeypatch.setenv("no_proxy", "*")
    return content


@pytest.fixture
def few(listed: Lists, tmp_path: Path, drawn: Path) -> Lists:
    """The same, and the frames."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return listed


def load(root: Path, variant: str = "nicv2_196", **options: Any) -> tuple[Clips, list[list[Clip]]]:
    return core50.load(root, variant, **options)


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shown(data: Clips, row: int) -> tuple[int, ...]:
    """The colour of an image, which must be of one colour."""
    flat = data.images[row].flatten(1)
    assert (flat == flat[:, :1]).all()
    return tuple(flat[:, 0].tolist())


def numbered(data: Clips, clip: Clip) -> list[int]:
    """The numbers of a film's frames, by their colours, which must be those of its session and object."""
    colours = [shown(data, row) for row in clip.frames]
    assert all(c[:2] == colour(clip.session, clip.label, 0)[:2] for c in colours)
    return [c[2] // 40 for c in colours]


@pytest.mark.parametrize("variant", core50.VARIANTS)
@pytest.mark.parametrize("run", [0, 1])
def test_batches_are_the_official_ones(few: Lists, tmp_path: Path, variant: str, run: int) -> None:
    data, batches = load(tmp_path, variant, run=run, test_every=1)
    *official, test = few["LUP.pkl"][variant][run]
    assert len(batches) == len(official)
    for batch, part in zip([*batches, data.of(data.test)], [*official, test], strict=True):
        assert all(numbered(data, clip) == [0, 1, 2] for clip in batch)
        names = [file(clip.session, clip.label + 1, k) for clip in batch for k in numbered(data, clip)]
        assert names == sorted(names, key=lambda name: [int(k) for k in Path(name).stem.split("_")[1:]])
        assert Counter(names) == Counter(few["paths.pkl"][k] for k in part)
    assert Counter(clip for batch in batches for clip in batch) == Counter(data.of(data.train))
    assert [(clip.label, clip.session) for clip in batches[0]] == [(0, 1), (5, 1)]


def test_what_the_data_say_of_themselves(few: Lists, tmp_path: Path) -> None:
    data, _ = load(tmp_path)
    assert data.name == "CORe50" and data.images.shape[1:] == (3, 128, 128) and data.images.dtype == torch.uint8
    assert data.train == (1, 2, 4, 5, 6, 8, 9, 11) and data.test == (3, 7, 10)
    assert len(data.names) == 50 and len(data.categories) == 10 and data.each == 5
    assert (data.names[0], data.names[12], data.names[49]) == ("plug adapter 1", "scissor 3", "remote 5")
    assert data.categories[1::4] == ("mobile phone", "glass", "remote")


def test_images_lie_batch_after_batch(few: Lists, tmp_path: Path) -> None:
    data, batches = load(tmp_path)
    rows = [row for clip in (*(c for batch in batches for c in batch), *data.of(data.test)) for row in clip.frames]
    assert rows == list(range(len(data.images)))


@pytest.mark.parametrize("every", [1, 2, 4, 20, 1000])
def test_test_frames_that_are_not_needed_are_not_even_looked_for(few: Lists, tmp_path: Path, every: int) -> None:
    test = [few["paths.pkl"][k] for k in few["LUP.pkl"]["nicv2_196"][0][-1]]
    for name in set(test) - set(test[::every]):
        (tmp_path / name).unlink()
    data, _ = load(tmp_path, test_every=every)
    found = [file(clip.session, clip.label + 1, k) for clip in data.of(data.test) for k in numbered(data, clip)]
    assert sorted(found) == sorted(test[::every]) and test != sorted(test)


def test_the_official_list_gives_2249_test_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = {3: 14_992, 7: 14_994, 10: 14_986}
    test = [Frame(s, k * 50 // count, k, file(s, k, k)) for s, count in counts.items() for k in range(count)]
    monkeypatch.setattr(core50, "obtain", lambda *_, **__: None)
    monkeypatch.setattr(core50, "official", lambda *_: [[Frame(1, 0, 0, file(1, 1, 0))], test])
    monkeypatch.setattr(core50, "unpacked", lambda root, *_: root)
    asked: list[list[Path]] = []

    def read(paths: list[Path], side: int) -> torch.Tensor:
        asked.append(paths)
        return torch.zeros(len(paths), 3, 1, 1, dtype=torch.uint8)

    monkeypatch.setattr(core50, "read", read)
    data, _ = load(tmp_path)
    assert len(test) == 44_972 and sum(map(len, data.of(data.test))) == 2249 and len(asked[0]) == 2250
    assert len(NICv2("core50", data_dir=str(tmp_path)).build().tests[0]) == 2249


def test_images_are_resized(few: Lists, tmp_path: Path) -> None:
    left = Image.new("RGB", (128, 128), (0, 0, 0))
    left.paste((200, 100, 0), (0, 0, 64, 128))
    left.save(tmp_path / file(1, 1, 0))
    data, batches = load(tmp_path, image_size=32)
    image = data.images[batches[0][0].frames[0]]
    assert data.images.shape[1:] == (3, 32, 32)
    assert image[:, 5, 3].tolist() == [200, 100, 0] and image[:, 5, 28].tolist() == [0, 0, 0]
    assert image[:, 28, 3].tolist() == [200, 100, 0]  # not turned


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "ni"}, "variant = 'ni': allowed are nicv2_79, nicv2_196, nicv2_391"),
        ({"run": 10}, "run = 10: must be a whole number between 0 and 9"),
        ({"run": -1}, "run = -1: must be a whole number between 0 and 9"),
        ({"test_every": 0}, "test_every = 0: must be a whole number at least 1"),
        ({"image_size": 0}, "image_size = 0: must be a whole number at least 1"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    assert refused(tmp_path, **options) == said
    assert not list(tmp_path.iterdir())


# The streams


@pytest.mark.parametrize("variant", core50.VARIANTS)
def test_official_and_dealt_streams_are_of_one_kind(frames_of_all: tuple[Path, Lists], variant: str) -> None:
    data, official = core50.load(frames_of_all[0], variant, check=False, image_size=2)
    dealt = deal(data.of(data.train), PER_BATCH[variant], range(0, 50, 5), 0)
    assert len(official) == len(dealt) == int(variant.removeprefix("nicv2_"))
    for batches in (official, dealt):
        assert [(clip.label, clip.session) for clip in batches[0]] == [(c, 1) for c in range(0, 50, 5)]
        assert {len(batch) for batch in batches[1:]} == {PER_BATCH[variant]}
        assert Counter(clip for batch in batches for clip in batch) == Counter(data.of(data.train))
        assert not {clip.session for batch in batches for clip in batch} & {3, 7, 10}
    assert len(data.of(data.train)) == 400


def test_a_stream_of_core50(frames_of_all: tuple[Path, Lists], monkeypatch: pytest.MonkeyPatch) -> None:
    root, content = frames_of_all
    unchecked(monkeypatch)
    stream = NICv2("core50", "nicv2_391", test_every=3, data_dir=str(root)).build()
    assert (stream.name, stream.note, stream.classes, len(stream)) == ("NICv2-391", "test_every 3", 50, 800)
    assert seen(stream)[0] == 10 and seen(stream)[-1] == 50 and stream.tests[0].classes == tuple(range(50))
    assert sum(b > a for a, b in pairwise(seen(stream))) == 40
    official = content["LUP.pkl"]["nicv2_391"][0]
    assert [len(e) for e in stream.experiences] == [len(part) for part in official[:-1]]
    assert len(stream.tests[0]) == len(official[-1][::3])
    for e in (*stream.experiences, *stream.tests):
        assert (e.x[:, 1, 0, 0] == 5 * e.y).all()
    order = [(red // 20, green // 5, blue) for red, green, blue in stream.tests[0].x[:, :, 0, 0].tolist()]
    assert order == sorted(order)
    assert tuple(e.classes for e in stream.experiences) == classes(content, 0)
    stores = {e.x.untyped_storage().data_ptr() for e in (*stream.experiences, *stream.tests)}
    assert len(stores) == 1  # 5.9 GB of all of CORe50 are there once


def classes(content: Lists, run: int) -> tuple[tuple[int, ...], ...]:
    """Of the batches of nicv2_391."""
    return tuple(tuple(sorted(set(part))) for part in content["labels.pkl"]["nicv2_391"][run][:-1])


def test_runs_of_core50_are_the_official_ones(
    frames_of_all: tuple[Path, Lists], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, content = frames_of_all
    unchecked(monkeypatch)
    stream = NICv2("core50", "nicv2_391", run=1, data_dir=str(root), image_size=2).build()
    assert tuple(e.classes for e in stream.experiences) == classes(content, 1) != classes(content, 0)
    assert stream.note == "run 1, image_size 2"


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core50, "verify", lambda *_: None)


def test_core50_lies_in_the_cache_folder_where_nothing_is_said(
    frames_of_all: tuple[Path, Lists], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unchecked(monkeypatch)
    monkeypatch.setenv("CLLIB_CACHE", str(tmp_path))
    (tmp_path / "core50").symlink_to(frames_of_all[0])
    assert NICv2("core50", image_size=4).build().shape == (3, 4, 4)


# The lists


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("arrays", [False, True])
def test_lists_may_be_arrays_in_any_protocol(few: Lists, tmp_path: Path, protocol: int, arrays: bool) -> None:
    expected = load(tmp_path)[1]
    if arrays:
        few["paths.pkl"] = np.array(few["paths.pkl"])
        for name in ("LUP.pkl", "labels.pkl"):
            runs = {v: {r: [np.array(p) for p in run] for r, run in enumerate(all_)} for v, all_ in few[name].items()}
            runs["nicv2_196"][0][1] = list(runs["nicv2_196"][0][1])  # numpy's numbers in a list
            few[name] = runs
    write(tmp_path, few, protocol)
    assert load(tmp_path, check=False)[1] == expected


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_would_run_something_is_refused(listed: Lists, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"

    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(mark),)

    (tmp_path / name).write_bytes(pickle.dumps([Harmful()]))
    assert refused(tmp_path, check=False).startswith(f"{tmp_path / name}: forbidden global posix.mkdir")
    assert not mark.exists()


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_pickle_that_is_none_is_named(listed: Lists, tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"<html>\n<body>", "empty": b""}[damage])
    assert refused(tmp_path, check=False).startswith(f"{path}: unreadable or truncated pickle (")


def edited(listed: Lists, root: Path, name: str, change: Callable[[Any], Any]) -> str:
    """What is said of the lists with one of them changed, without the name of the file."""
    listed[name] = change(listed[name])
    write(root, listed)
    message = refused(root, check=False)
    assert message.startswith(f"{root / name}: ")
    return message.removeprefix(f"{root / name}: ")


def put(value: Any, *place: Any) -> Callable[[Any], Any]:
    """A change: this value at a place, or what a function makes of the value there."""

    def change(content: Any) -> Any:
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value(inner[place[-1]]) if callable(value) else value
        return content

    return change


@pytest.mark.parametrize(
    "name",
    [
        *("s1/o1/C_01_01_00.png", "s1/o1/C_01_02_000.png", "s2/o1/C_01_01_000.png", "s01/o1/C_01_01_000.png"),
        *("s12/o1/C_12_01_000.png", "s1/o51/C_01_51_000.png", "s0/o1/C_00_01_000.png", "s1/o0/C_01_00_000.png"),
        *("../s1/o1/C_01_01_000.png", "/s1/o1/C_01_01_000.png", "s1/o1/C_01_01_000.png\n", "", 7, None),
    ],
)
def test_a_name_that_is_no_frame_is_refused(listed: Lists, tmp_path: Path, name: object) -> None:
    said = edited(listed, tmp_path, "paths.pkl", put(name, 5))
    assert said == f"{name!r} is no frame; frames are like s1/o2/C_01_02_003.png"


def test_names_must_be_a_list(listed: Lists, tmp_path: Path) -> None:
    said = edited(listed, tmp_path, "paths.pkl", lambda names: dict(enumerate(names)))
    assert said == "must hold a list of paths of frames"


@pytest.mark.parametrize("name", ["LUP.pkl", "labels.pkl"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("nicv2_196") and content,
        lambda content: content["nicv2_196"].clear() or content,
        lambda content: list(content.values()),
        lambda content: 5,
    ],
)
def test_a_run_that_is_not_there_is_named(
    listed: Lists, tmp_path: Path, name: str, change: Callable[[Any], Any]
) -> None:
    assert edited(listed, tmp_path, name, change) == "nicv2_196, run 0: not in this file"


@pytest.mark.parametrize("run", [2, 9])
def test_a_run_that_the_lists_do_not_have_is_named(listed: Lists, tmp_path: Path, run: int) -> None:
    assert refused(tmp_path, run=run) == f"{tmp_path / 'LUP.pkl'}: nicv2_196, run {run}: not in this file"


@pytest.mark.parametrize("value", [5, "0123", [[0, 1]], None])
def test_a_run_must_be_batches_and_a_test(listed: Lists, tmp_path: Path, value: object) -> None:
    said = edited(listed, tmp_path, "LUP.pkl", put(value, "nicv2_196", 0))
    assert said == "nicv2_196, run 0: must be a list of batches, the last of them the test"


@pytest.mark.parametrize(
    "value",
    [[99], [0, -1], [], np.empty(0, int), [0.0], ["0"], [[0], [1]], [[0], [1, 2]], 0, None, [True]],
)
def test_indices_must_be_numbers_of_frames(listed: Lists, tmp_path: Path, value: object) -> None:
    said = edited(listed, tmp_path, "LUP.pkl", put(value, "nicv2_196", 0, 3))
    assert said == "nicv2_196, run 0, batch 3: must be a list of numbers from 0 to 98"


def test_labels_must_be_those_of_the_frames(listed: Lists, tmp_path: Path) -> None:
    place = ("nicv2_196", 0, 0)
    assert listed["labels.pkl"]["nicv2_196"][0][0][1] == 5
    said = edited(listed, tmp_path, "labels.pkl", put(4, *place, 1))
    assert said == f"nicv2_196, run 0, batch 0: label 4 of {file(1, 6, 1)}, must be 5"
    said = edited(listed, tmp_path, "labels.pkl", put(lambda batch: [6, *batch], *place))
    assert said == "nicv2_196, run 0, batch 0: 7 labels of 6 frames"
    said = edited(listed, tmp_path, "labels.pkl", put(50, *place, 0))
    assert said == "nicv2_196, run 0, batch 0: must be a list of numbers from 0 to 49"
    said = edited(listed, tmp_path, "labels.pkl", put(lambda run: run[1:], *place[:2]))
    assert said == "nicv2_196, run 0: 12 batches; LUP.pkl has 13"


def index_of(listed: Lists, *frame: int) -> int:
    row: int = listed["paths.pkl"].index(file(*frame))
    return row


@pytest.mark.parametrize(
    ("batch", "frame", "what"),
    [
        (0, (7, 6, 0), "a batch, which has the sessions 1, 2, 4, 5, 6, 8, 9, 11"),
        (-1, (2, 8, 1), "the test, which has the sessions 3, 7, 10"),
    ],
)
def test_sessions_of_training_and_test_stay_apart(
    listed: Lists, tmp_path: Path, batch: int, frame: tuple[int, int, int], what: str
) -> None:
    put(frame[1] - 1, "nicv2_196", 0, batch, 1)(listed["labels.pkl"])
    said = edited(listed, tmp_path, "LUP.pkl", put(index_of(listed, *frame), "nicv2_196", 0, batch, 1))
    assert said == f"nicv2_196, run 0, batch {batch % 13}: {file(*frame)} cannot be in {what}"


def test_no_frame_comes_twice(listed: Lists, tmp_path: Path) -> None:
    put(0, "nicv2_196", 0, 4, 0)(listed["labels.pkl"])
    said = edited(listed, tmp_path, "LUP.pkl", put(index_of(listed, 1, 1, 2), "nicv2_196", 0, 4, 0))
    assert said == f"nicv2_196, run 0, batch 4: {file(1, 1, 2)} comes twice"


# The frames


@pytest.mark.parametrize("session", [4, 7])
def test_a_missing_frame_is_named_and_where_to_get_it(few: Lists, tmp_path: Path, session: int) -> None:
    for number in (0, 1):
        (tmp_path / file(session, 6, number)).unlink()
    message = refused(tmp_path, test_every=1)
    path = tmp_path / file(session, 6, 0)
    assert message.startswith(f"{path}: missing, one of 2 missing frames; ")
    assert message.endswith(f"unpacked from http://127.0.0.1:9/{core50.ARCHIVE}; download=True fetches it (4.3 GB)")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "size"])
@pytest.mark.parametrize("image_size", [None, 16])
def test_a_frame_that_is_none_is_named(few: Lists, tmp_path: Path, damage: str, image_size: int | None) -> None:
    path = tmp_path / file(5, 8, 2)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"no image"}.get(damage, b""))
    if damage == "size":
        Image.new("RGB", (128, 96)).save(path)
    said = "128 x 96 pixels, must be 128 x 128" if damage == "size" else "cannot be read as an image ("
    assert refused(tmp_path, image_size=image_size).startswith(f"{path}: {said}")


def moved(root: Path, to: Path) -> None:
    """The folders of the frames, moved to another."""
    to.mkdir(parents=True, exist_ok=True)
    for session in range(1, 12):
        (root / f"s{session}").rename(to / f"s{session}")


def pack(source: Path, path: Path, monkeypatch: pytest.MonkeyPatch, inside: str = "core50_128x128/") -> None:
    """The frames of a folder as the archive, with its checksum, and things in it that do not belong there."""
    with zipfile.ZipFile(path, "w") as packed:
        for frame in sorted(source.rglob("*.png")):
            packed.write(frame, f"{inside}{frame.relative_to(source)}")
        for name in ("../evil.png", "b/s1/o1/C_01_01_000.png", "s1/o1/../../../evil.png", "readme.txt"):
            packed.writestr(f"{inside}{name}", b"evil")
        for name in ("../s1/o1/C_01_01_000.png", "/s1/o1/C_01_01_000.png", "a/s1/o1/C_01_01_000.png"):
            packed.writestr(name, b"evil")
    address, _ = core50.FILES[core50.ARCHIVE]
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(core50.FILES, core50.ARCHIVE, (address, md5))


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("inside", ["core50_128x128/", ""])
def test_the_archive_is_unpacked_and_nothing_else_in_it(
    few: Lists, tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    root = tmp_path / "deep" / "root"
    expected, _ = load(tmp_path)
    root.mkdir(parents=True)
    write(root, few)
    pack(drawn, root / core50.ARCHIVE, monkeypatch, inside)
    data, _ = load(root)
    assert torch.equal(data.images, expected.images)
    assert files(tmp_path / "deep") == {
        f"root/{name}" for name in (*few["paths.pkl"], *PICKLES, core50.ARCHIVE)
    }  # nothing outside, nothing beside


def test_frames_may_lie_in_the_folder_of_the_archive(few: Lists, tmp_path: Path) -> None:
    expected, _ = load(tmp_path)
    moved(tmp_path, tmp_path / "core50_128x128")
    assert torch.equal(load(tmp_path)[0].images, expected.images)
    (tmp_path / "core50_128x128" / file(1, 1, 0)).unlink()
    assert refused(tmp_path).startswith(f"{tmp_path / 'core50_128x128' / file(1, 1, 0)}: missing, one of 1 missing")


def test_an_archive_that_is_not_needed_is_not_looked_at(few: Lists, tmp_path: Path) -> None:
    (tmp_path / core50.ARCHIVE).write_bytes(b"anything")
    load(tmp_path)
    assert (tmp_path / core50.ARCHIVE).read_bytes() == b"anything"


def test_a_damaged_archive_is_named_and_left_where_it_is(
    few: Lists, tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / core50.ARCHIVE
    pack(drawn, path, monkeypatch)
    content = bytearray(path.read_bytes())
    where = content.index(b"IDAT") + 8
    content[where] ^= 1
    path.write_bytes(content)
    shutil.rmtree(tmp_path / "s1")
    message = refused(tmp_path)
    assert message.startswith(f"{path}: damaged file, found md5 ") and message.endswith("download=True fetches it")
    assert path.exists() and not (tmp_path / "s1").exists()
    assert refused(tmp_path, check=False).startswith(f"{path}: cannot be unpacked to {tmp_path} (Bad CRC-32")
    path.write_bytes(b"no archive")
    assert refused(tmp_path, check=False).startswith(f"{path}: cannot be unpacked to {tmp_path} (File is not a zip")


def test_unpacking_goes_on_where_it_was_stopped(
    few: Lists, tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = load(tmp_path)
    pack(drawn, tmp_path / core50.ARCHIVE, monkeypatch)
    (tmp_path / file(1, 1, 0)).unlink()
    (tmp_path / file(1, 1, 1)).write_bytes(b"half of it")
    kept = (tmp_path / file(1, 1, 2)).stat().st_mtime_ns
    data, _ = load(tmp_path)
    assert torch.equal(data.images, expected.images) and (tmp_path / file(1, 1, 2)).stat().st_mtime_ns == kept


def test_an_archive_that_lacks_a_frame_is_named(
    few: Lists, tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    shutil.copytree(drawn, source)
    (source / file(2, 6, 1)).unlink()
    pack(source, tmp_path / core50.ARCHIVE, monkeypatch)
    shutil.rmtree(tmp_path / "s2")
    path = tmp_path / file(2, 6, 1)
    assert refused(tmp_path) == f"{path}: missing, one of 1 frames that are not in {core50.ARCHIVE} either"


# Checksums and downloads


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_list_is_set_aside_and_never_read(
    listed: Lists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content) if damage == "flipped" else path.unlink()
    monkeypatch.setattr(core50, "unpickle", lambda *_: pytest.fail("a damaged file was read"))
    with warnings.catch_warnings(record=True) as warned:
        message = refused(tmp_path)
    assert [f"set aside as {name}.damaged" in str(w.message) for w in warned] == [True] * (damage == "flipped")
    assert message.startswith(f"{path}: missing, and http://127.0.0.1:9/{name} could not be downloaded (")
    assert (tmp_path / f"{name}.damaged").exists() == (damage == "flipped") and not path.exists()


def test_without_the_check_other_lists_are_taken(few: Lists, tmp_path: Path) -> None:
    write(tmp_path, few, protocol=2)
    expected, _ = load(tmp_path, check=False)
    with warnings.catch_warnings(record=True):
        refused(tmp_path)
    assert len(expected.images) == 8 * 3 * 3 + 2


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the official addresses lead to; asks for `few` to come first."""
    folder = tmp_path_factory.mktemp("store")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name, (_, md5) in core50.FILES.items():
        monkeypatch.setitem(core50.FILES, name, (f"http://127.0.0.1:{server.server_port}/{name}", md5))
    yield folder
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_missing_list_is_downloaded_and_checked(few: Lists, store: Path, tmp_path: Path, damaged: bool) -> None:
    (tmp_path / "LUP.pkl").rename(store / "LUP.pkl")
    if damaged:
        (store / "LUP.pkl").write_bytes(b"something else")
        assert "/LUP.pkl could not be downloaded (" in refused(tmp_path)
        assert not (tmp_path / "LUP.pkl").exists()
    else:
        assert len(load(tmp_path)[1]) == 12


@pytest.mark.parametrize("half", [False, True])
def test_frames_are_downloaded_only_when_asked(
    few: Lists, store: Path, tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    expected, _ = load(tmp_path)
    pack(drawn, store / core50.ARCHIVE, monkeypatch)
    shutil.rmtree(tmp_path / "s5")
    assert "download=True fetches it (4.3 GB)" in refused(tmp_path)
    if half:
        (tmp_path / core50.ARCHIVE).write_bytes(b"half of it")
    with warnings.catch_warnings(record=True) as warned:
        data, _ = load(tmp_path, download=True)
    assert torch.equal(data.images, expected.images)
    assert [f"set aside as {core50.ARCHIVE}.damaged" in str(w.message) for w in warned] == [True] * half
    assert (tmp_path / f"{core50.ARCHIVE}.damaged").exists() == half


def test_official_checksums_are_listed() -> None:
    assert set(core50.FILES) == {core50.ARCHIVE, *PICKLES}
    assert all(address.endswith(f"/{name}") and len(md5) == 32 for name, (address, md5) in core50.FILES.items())


@pytest.mark.skipif("CLLIB_CORE50" not in os.environ, reason="CLLIB_CORE50 names no folder with it")
def test_the_real_one() -> None:
    data, batches = core50.load(os.environ["CLLIB_CORE50"], "nicv2_391", image_size=8)
    assert len(batches) == 391 and sum(map(len, data.of(data.train))) == 119_894 and len(batches[0]) == 10
    assert sum(map(len, batches[0])) == 2999 and sum(map(len, data.of(data.test))) == 2249
    films = sorted((clip.session, clip.label) for clip in data.of(data.train))
    assert [len(list(own)) for _, own in groupby(films)] == [1] * 400
