"""What names a result says all that decides it: the stamp of a copy, the address of a run, the file of a record."""

import os
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cllib import chapters, fingerprint, notebooks, results, runs
from cllib.errors import UserError
from cllib.experiments import address_of, compare, programs
from cllib.learners import LEARNERS
from cllib.learners.naive import Naive
from cllib.models.networks import MLP
from cllib.recipes import Recipe
from cllib.streams import from_folder
from samples import STREAM

NAME = "06_side_by_side"
CELL = '# %% tags=["parameters"]\nprofile = None\n{}\n\n# %%\nprint(1)\n'
Key = Callable[..., str]


@dataclass(frozen=True)
class Own:
    """A network of the reader's that starts from a file, wherever its place is said."""

    place: Any = ""
    parts: dict[str, Any] = field(default_factory=dict)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))
        where = self.place or self.parts.get("deep", {}).get("place") or os.environ.get("OWN_WEIGHTS")
        if where:
            where = Path(where)
            network.load_state_dict(torch.load(where / "own.pt" if where.is_dir() else where, weights_only=True))
        return network


def image(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)


def weights(path: Path, value: float) -> None:
    path.parent.mkdir(exist_ok=True)
    torch.save({"1.weight": torch.full((4, 192), value), "1.bias": torch.zeros(4)}, path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four class folders, one of them a link; a chapter that compares on them; weights of a network."""
    for c, name in enumerate(("ant", "bee", "cat")):
        for k in range(4):
            image(tmp_path / "images" / name / f"{k}.png", 50 * c + k)
    for k in range(4):
        image(tmp_path / "elsewhere" / "dogs" / f"{k}.png", 200 + k)
        image(tmp_path / "elsewhere" / "wolves" / f"{k}.png", 210 + k)
    (tmp_path / "images" / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / f"{NAME}.py").write_text(CELL.format(f'data = "folder"\ndata_dir = "{tmp_path / "images"}"'))
    weights(tmp_path / "own" / "own.pt", 0.1)
    monkeypatch.setattr(notebooks, "digest", lambda *_: "")  # this package's own files: tested elsewhere
    return tmp_path


def stamp(world: Path, **given: Any) -> str:
    notebook = notebooks.source(NAME, world / "book")
    asked = notebooks.asked(NAME, "smoke", given, notebook)
    return notebooks.stamp(notebook, "smoke", given, notebooks.contained(asked))


def recipe(world: Path, **changes: Any) -> Recipe:
    return replace(Recipe("naive", network=Own(str(world / "own" / "own.pt")), batch_size=4), **changes)


def address(world: Path, **changes: Any) -> str:
    stream = from_folder(world / "images", 2, image_size=8)
    ((_, program),) = programs({"own": recipe(world, **changes)}, [1], "own", stream)
    return address_of(program, results.stream_hash(stream), "cpu")


def file(world: Path, **changes: Any) -> str:
    stream = from_folder(world / "images", 2, image_size=8)
    compare("e", stream, {"own": recipe(world, **changes)}, [1], where=world / "records", probe_every=0)
    (path,) = (world / "records").rglob("*.json")
    name = str(path.relative_to(world))
    path.unlink()
    return name


def new_bytes(world: Path) -> None:
    image(world / "images" / "bee" / "1.png", 99)


def new_bytes_behind_a_link(world: Path) -> None:
    image(world / "elsewhere" / "dogs" / "3.png", 99)


def new_bytes_as_old_as_before(world: Path) -> None:
    path = world / "images" / "bee" / "1.png"
    old = path.read_bytes()
    told = path.stat()
    path.write_bytes((world / "images" / "bee" / "2.png").read_bytes())
    assert len(path.read_bytes()) == len(old)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))


def another_target(world: Path) -> None:
    (world / "images" / "dog").unlink()
    (world / "images" / "dog").symlink_to(world / "elsewhere" / "wolves")


def another_image(world: Path) -> None:
    image(world / "images" / "bee" / "9.png", 9)


def an_image_less(world: Path) -> None:
    (world / "images" / "bee" / "1.png").unlink()


IMAGES = (new_bytes, new_bytes_behind_a_link, new_bytes_as_old_as_before, another_target, another_image, an_image_less)


@pytest.mark.parametrize("key", [stamp, address, file])
@pytest.mark.parametrize("change", IMAGES)
def test_other_images_are_another_key(key: Key, change: Callable[[Path], None], world: Path) -> None:
    before = key(world)
    change(world)
    assert key(world) != before


def touched(world: Path) -> None:
    os.utime(world / "images" / "bee" / "1.png", (1, 1))


def copied(world: Path) -> None:
    path = world / "images" / "bee" / "1.png"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def not_read(world: Path) -> None:
    (world / "images" / "bee" / "notes.txt").write_text("of no matter")
    (world / "images" / "bee" / "more").symlink_to(world / "elsewhere" / "wolves")
    image(world / "images" / ".cache" / "0.png", 9)


@pytest.mark.parametrize("key", [stamp, address, file])
@pytest.mark.parametrize("change", [lambda world: None, touched, copied, not_read])
def test_the_same_images_are_the_same_key(key: Key, change: Callable[[Path], None], world: Path) -> None:
    before = key(world)
    change(world)
    assert key(world) == before


@given(at=st.integers(0, 10_000), to=st.integers(1, 255), name=st.sampled_from(["ant/0", "bee/3", "dog/2"]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_byte_of_any_image_is_stamped(world: Path, at: int, to: int, name: str) -> None:
    before, path = stamp(world), world / "images" / f"{name}.png"
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= to
    whole = path.read_bytes()
    path.write_bytes(content)
    assert stamp(world) != before
    path.write_bytes(whole)
    assert stamp(world) == before


def test_a_value_in_the_cell_is_stamped_and_so_is_one_given(world: Path) -> None:
    text = (world / "book" / f"{NAME}.py").read_text()
    seen = [stamp(world), stamp(world, tasks=2), stamp(world, tasks=1)]
    (world / "book" / f"{NAME}.py").write_text(text.replace("profile = None", "profile = None\ntasks = 2"))
    seen.append(stamp(world))
    assert len(set(seen)) == 4


def test_a_place_in_the_cell_may_be_worked_out(world: Path) -> None:
    place = f'from pathlib import Path\ndata = "folder"\ndata_dir = str(Path("{world}") / "images")'
    (world / "book" / f"{NAME}.py").write_text(CELL.format(place))
    before = stamp(world)
    new_bytes(world)
    assert stamp(world) != before


def test_other_places_count_by_what_lies_there_links_followed(world: Path) -> None:
    text = CELL.format(f'data_dir = "{world / "images"}"')  # not of the reader's own images: a folder of downloads
    (world / "book" / f"{NAME}.py").write_text(text)
    for change in (new_bytes, another_image, another_target, new_bytes_behind_a_link):
        before = stamp(world)
        if change is new_bytes_behind_a_link:
            image(world / "elsewhere" / "wolves" / "3.png", 99)
        else:
            change(world)
        assert stamp(world) != before, change.__name__
    (world / "images" / "round").symlink_to(world / "images")  # a circle ends
    assert stamp(world)


def test_the_weights_a_chapter_names_are_stamped(world: Path) -> None:
    text = "profile = None\n\n# %%\nprint(1)\n"
    (world / "book" / "03_latent_replay.py").write_text('# %% tags=["parameters"]\n' + text)

    def of_chapter_3() -> str:
        notebook = notebooks.source("03_latent_replay", world / "book")
        told = {"weights": str(world / "own" / "own.pt")}
        places = notebooks.contained(notebooks.asked("03_latent_replay", "smoke", told, notebook))
        return notebooks.stamp(notebook, "smoke", told, places)

    before = of_chapter_3()
    weights(world / "own" / "own.pt", 0.2)
    assert of_chapter_3() != before


PLACED: dict[str, Callable[[Path], Own]] = {
    "as text": lambda world: Own(str(world / "own" / "own.pt")),
    "as a path": lambda world: Own(world / "own" / "own.pt"),
    "in a folder": lambda world: Own(str(world / "own")),
    "inside a value": lambda world: Own(parts={"deep": {"place": str(world / "own" / "own.pt")}}),
    "outside of it": lambda world: Own(),
}


@pytest.mark.parametrize("how", PLACED)
@pytest.mark.parametrize("key", [address, file])
def test_weights_of_a_network_of_ones_own_count_by_content(
    key: Key, how: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "outside of it":
        monkeypatch.setenv("OWN_WEIGHTS", str(world / "own" / "own.pt"))
    network = PLACED[how](world)
    before = key(world, network=network)
    assert key(world, network=network) == before
    weights(world / "own" / "own.pt", 0.2)
    assert key(world, network=network) != before
    weights(world / "own" / "own.pt", 0.1)
    assert key(world, network=network) == before


def test_new_weights_in_the_same_file_are_a_new_result(world: Path) -> None:
    stream = from_folder(world / "images", 2, image_size=8)
    made = []
    for value in (0.1, 0.2):
        weights(world / "own" / "own.pt", value)
        made += compare("e", stream, {"own": recipe(world)}, [1], probe_every=0)
    assert made[0].runs != made[1].runs and made[0].learner != made[1].learner


def test_a_file_that_a_setting_of_any_learner_names_counts_by_content(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Named:
        place: str = ""

    class Reading(Naive):
        Settings = Named

    monkeypatch.setitem(LEARNERS, "reading", Reading)
    told = {"learner": "reading", "settings": Named(str(world / "own" / "own.pt")), "network": MLP()}
    before = address(world, **told)
    weights(world / "own" / "own.pt", 0.2)
    assert address(world, **told) != before


def test_what_a_setting_holds_counts_too(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Holding:
        change: Any = None

    class Using(Naive):
        Settings = Holding

    monkeypatch.setitem(LEARNERS, "using", Using)
    told = [lambda x: x + 1, lambda x: x + 2]
    keys = {address(world, learner="using", settings=Holding(change), network=MLP()) for change in told}
    assert len(keys) == 2


@pytest.mark.parametrize("library", ["python", *runs.VERSIONS])
@pytest.mark.parametrize("key", [stamp, address])
def test_another_library_is_another_key(key: Key, library: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, versions = key(world), runs.versions()
    monkeypatch.setattr(runs, "versions", lambda: versions | {library: "99"})
    assert key(world) != before


def test_a_library_that_ones_own_network_comes_from_counts(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Parsed:
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            import bs4  # of no use here, but of this code

            return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes), nn.Identity(str(bs4)))

    before = address(world, network=Parsed())
    assert address(world, network=Parsed()) == before
    number = fingerprint.metadata.version
    monkeypatch.setattr(
        fingerprint.metadata, "version", lambda name: "99" if name == "beautifulsoup4" else number(name)
    )
    assert address(world, network=Parsed()) != before


@pytest.mark.parametrize("key", [stamp, address])
def test_another_number_of_threads_is_another_key(key: Key, world: Path) -> None:
    threads = torch.get_num_threads()
    before = key(world)
    torch.set_num_threads(threads + 1)
    try:
        assert key(world) != before
    finally:
        torch.set_num_threads(threads)
    assert key(world) == before


def test_a_record_says_what_the_processor_can_do() -> None:
    (record,) = compare("e", STREAM, {"mlp": Recipe(network=MLP((4,)))}, [1], probe_every=0)
    assert record.processor == torch.backends.cpu.get_cpu_capability()
    other = replace(record, seeds=[2], processor="AVX2")
    assert results.pooled([record, other])[0].processor == f"{record.processor}, AVX2"  # no reason to be kept apart


# --- names of one's own data ---


def test_own_images_keep_their_names(world: Path) -> None:
    stream = from_folder(world / "images", 2, image_size=8)
    assert stream.names == ("ant", "bee", "cat", "dog")
    assert "images" in stream.name and "12 + 4 images" in stream.note
    (record,) = compare("e", stream, {"own": recipe(world)}, [1], probe_every=0)
    assert record.names == list(stream.names) and record.stream == stream.name and "12 + 4 images" in record.note


def test_two_folders_do_not_overwrite_each_others_records(world: Path) -> None:
    (world / "b").mkdir()
    (world / "b" / "images").symlink_to(world / "elsewhere")
    for part in ("dogs", "wolves"):
        image(world / "elsewhere" / part / "4.png", 30)
    for folder, tasks in ((world / "images", 2), (world / "b" / "images", 2)):
        stream = replace(from_folder(folder, tasks, image_size=8), name="images")
        compare("mine", stream, {"mlp": Recipe(network=MLP((4,)))}, [1], where=world / "records", probe_every=0)
    assert sorted(tuple(record.names) for record in results.load(world / "records")) == [
        ("ant", "bee", "cat", "dog"),
        ("dogs", "wolves"),
    ]


def test_the_same_asked_again_takes_the_records_place(tmp_path: Path) -> None:
    for seeds in ([1], [1, 2]):
        compare("e", STREAM, {"mlp": Recipe(network=MLP((4,)))}, seeds, where=tmp_path, probe_every=0)
    (record,) = results.load(tmp_path)
    assert record.n == 2
    compare("e", STREAM, {"mlp": Recipe(network=MLP((5,)))}, [1], where=tmp_path, probe_every=0)
    assert len(results.load(tmp_path)) == 2


# --- what is written is read by newer code ---


def test_new_settings_have_their_defaults_in_old_records() -> None:
    (record,) = compare("e", STREAM, {"er": Recipe("er", network=MLP((4,)))}, [1], probe_every=0)
    wanted = Recipe("er", network=MLP((4,))).describe()
    assert record.learner == wanted
    old = {name: value for name, value in record.learner.items() if name not in ("halved", "gate", "meta")}
    old["settings"] = {"kind": old["settings"]["kind"]}
    old["network"] = {"kind": "MLP", "hidden": [4]}
    results.save([replace(record, learner=old)], results.artifacts() / "old")
    (read,) = results.load(results.artifacts() / "old")
    assert read.learner == wanted


def test_every_committed_record_says_all_its_settings_as_of_today() -> None:
    for folder in sorted(results.MEASURED.iterdir()):
        for record in results.load(folder):
            if "learner" in record.learner:
                assert set(record.learner) >= set(Recipe().describe()), record.label


def test_a_row_that_is_named_and_not_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    made = results.load(results.MEASURED / "05_birt")
    assert results.same(made, experiment="main", label="BiRT")[0].label == "BiRT" and not capsys.readouterr().out
    assert not results.same(made, experiment="main", label="no such row")
    assert "no such row" in capsys.readouterr().out


def test_two_cells_of_parameters_or_none_are_refused(world: Path) -> None:
    for text in ("# %%\nprofile = None\n", CELL.format("") + CELL.format("")):
        (world / "book" / f"{NAME}.py").write_text(text)
        with pytest.raises(UserError, match='cells with the tag "parameters"'):
            stamp(world)


@pytest.mark.parametrize("line", ["task = 4", "tasks = 'many'", "tasks = 1 / 0", "tasks = nowhere"])
def test_a_wrong_line_in_the_cell_is_refused_before_anything_runs(line: str, world: Path) -> None:
    (world / "book" / f"{NAME}.py").write_text(CELL.format(line))
    with pytest.raises(UserError):
        stamp(world)


def test_a_relative_place_means_one_folder_wherever_the_kernel_works(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chapters, "ROOT", world)
    for where in (world, world / "book"):
        monkeypatch.chdir(where)
        settings = chapters.from_notebook(NAME, {"data": "folder", "data_dir": "images"})
        assert settings.data_dir == str(world / "images")


# --- what names say, and what is held where ---


@dataclass(frozen=True)
class Front:
    """A frozen part of the reader's own, which reads a file, and a head on it."""

    place: str

    def front(self, shape: tuple[int, ...]) -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(int(np.prod(shape)), 4, bias=False))
        module[2].load_state_dict({"weight": torch.load(self.place, weights_only=True)["1.weight"]})
        return module.requires_grad_(False)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Linear(int(np.prod(shape)), classes)


def test_latents_of_a_front_of_ones_own_are_those_of_its_weights(world: Path) -> None:
    stream = from_folder(world / "images", 2, image_size=8)
    place = str(world / "own" / "own.pt")

    def plasticity(store: str) -> float:
        own = Recipe("naive", network=Front(place), batch_size=4, step_size=0.5)
        (record,) = compare("e", stream, {"own": own}, [1], store=world / store, probe_every=0)
        return float(record.online[0][0]), record.runs  # type: ignore[return-value]

    first = plasticity("store")
    torch.save({"1.weight": torch.randn(4, 192)}, place)
    assert plasticity("store") == plasticity("fresh") != first  # in evaluation mode, and not the latents kept before


@dataclass(frozen=True)
class Odd:
    """A network whose file does not end in its state: `how` says where."""

    how: str
    place: Any = ""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))
        value = torch.load(os.environ["OWN_WEIGHTS"], weights_only=True)["1.bias"] + float(
            torch.load(os.environ["OWN_WEIGHTS"], weights_only=True)["1.weight"][0, 0]
        )
        if self.how == "buffer":
            network.register_buffer("extra", value, persistent=False)
        elif self.how == "list":
            network.extra = [value]
        elif self.how == "rate":
            network.append(nn.Dropout(float(value[0])))
        return network


@pytest.mark.parametrize("how", ["buffer", "list", "rate"])
def test_what_build_reads_counts_wherever_it_ends(how: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_WEIGHTS", str(world / "own" / "own.pt"))
    before = address(world, network=Odd(how))
    assert address(world, network=Odd(how)) == before
    weights(world / "own" / "own.pt", 0.2)
    assert address(world, network=Odd(how)) != before


def test_a_fingerprint_that_is_inherited_hides_no_file(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Parent(Odd):
        def fingerprint(self) -> str:
            return "the parent's"

    class Child(Parent):
        pass

    monkeypatch.setenv("OWN_WEIGHTS", str(world / "own" / "own.pt"))
    before = address(world, network=Child("list"))
    weights(world / "own" / "own.pt", 0.2)
    assert address(world, network=Child("list")) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Decimal("0.1"), Decimal("0.9")), (Fraction(1, 2), Fraction(1, 3)), 
        (bytearray(b"a"), bytearray(b"b")), (slice(1), slice(2)),
        (deque([1]), deque([2])), (re.compile("a"), re.compile("b")),
    ],
)  # fmt: skip
def test_values_count_by_what_they_are(one: Any, other: Any) -> None:
    assert fingerprint.code_hash({"a": one}) != fingerprint.code_hash({"a": other})


def test_slots_and_deep_networks_count() -> None:
    @dataclass(slots=True)
    class Slotted:
        value: int

    assert fingerprint.code_hash({"a": Slotted(1)}) != fingerprint.code_hash({"a": Slotted(2)})
    deep = [nn.Linear(1, 1), nn.Linear(1, 1)]
    for k in range(2):
        for _ in range(9):
            deep[k] = nn.Sequential(deep[k])  # type: ignore[call-overload]
    assert fingerprint.code_hash({"a": deep[0]}) != fingerprint.code_hash({"a": deep[1]})
    assert fingerprint.code_hash({"a": deep[0]}) == fingerprint.code_hash({"a": deep[0]})


def test_classes_of_another_name_are_another_record(world: Path) -> None:
    told: dict[str, Any] = {"where": world / "records", "probe_every": 0}
    for names in (("ant", "bee", "cat", "dog"), ("oak", "ash", "fir", "elm")):
        stream = replace(from_folder(world / "images", 2, image_size=8), names=names)
        compare("mine", stream, {"mlp": Recipe(network=MLP((4,)))}, [1], **told)
    assert {record.names[0] for record in results.load(world / "records")} == {"ant", "oak"}


def test_code_counts_in_a_checkout_below_a_folder_of_downloads(tmp_path: Path) -> None:
    place = tmp_path / "downloads" / "checkout"
    place.mkdir(parents=True)
    (place / "a.py").write_text("1")
    before = notebooks.digest(place)
    (place / "a.py").write_text("2")
    assert notebooks.digest(place) != before


@pytest.mark.parametrize("line", ["%matplotlib inline\nunit = 4", "if True:\n    unit = 4", "raise SystemExit(3)"])
def test_no_way_of_writing_hides_a_wrong_name(line: str, world: Path) -> None:
    (world / "book" / f"{NAME}.py").write_text(CELL.format(line))
    with pytest.raises(UserError) as caught:
        stamp(world)
    assert "\n" not in str(caught.value)


def test_a_place_in_a_field_counts_as_it_is_written(world: Path) -> None:
    places = (Path("a"), Path("b"))
    assert len({str(recipe(world, network=Own(place)).describe()) for place in places}) == 2


def test_code_is_the_same_wherever_the_package_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint.code_hash(results.save, runs.store)
    for module in (results, runs, notebooks):
        monkeypatch.setattr(module, "ROOT", Path("/elsewhere"))
    assert fingerprint.code_hash(results.save, runs.store) == before
