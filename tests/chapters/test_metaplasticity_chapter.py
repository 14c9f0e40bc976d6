"""Chapter 2's parameters: what stands behind None, the published rows, and the transformer project's experiment."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cllib.chapters import settings
from cllib.chapters.metaplasticity import NAME, NETS, PARTS
from cllib.errors import UserError
from cllib.experiments import compare
from cllib.ledger import claims, published
from cllib.models.binary import BinaryCNN, BinaryMLP, binary_weights
from cllib.models.norms import batch_norms
from cllib.models.vit import ViT

TABLES = [table for table in published(NAME)["tables"] if "settings" in table]


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Tiny-ImageNet-200's layout with ten classes of ten images, each class of its own brightness."""
    folder, names = tmp_path / "tiny-imagenet-200", [f"n{k:08d}" for k in range(10)]
    for c, name in enumerate(names):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        for k in range(10):
            Image.new("RGB", (64, 64), (25 * c, 255 - 25 * c, 9 * k)).save(images / f"{name}_{k}.JPEG", quality=95)
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    return tmp_path


# --- the transformer project's experiment ---


def test_six_words_and_two_flags_give_the_released_experiment(imagenet: Path) -> None:
    p = settings(NAME, "paper", net="bvit", meta=1.35, task_sequence=["imgnet-5"] * 6, data_dir=str(imagenet))
    recipe = p.experiment()
    large = {"image_size": 224, "resize": 256, "patch": 16, "dim": 768, "depth": 4, "heads": 12, "mlp_ratio": 4.0}
    assert recipe.network == ViT("bvit", **large)
    assert (recipe.step_size, recipe.epochs, recipe.batch_size, recipe.weight_decay) == (0.00099, 100, 20, 1e-7)
    assert recipe.meta == (1.35,) and recipe.meta_scope == "binary" and recipe.optimizer == "metaplastic"
    assert recipe.reset and recipe.own_norms and recipe.gamma == 1
    assert p.experiment_on(p.stream()) == recipe  # m as it was given
    p.check_data()
    stream = p.stream()
    assert [e.classes for e in stream.experiences] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert [len(e) for e in stream.experiences] == [16] * 5 and [len(e) for e in stream.tests] == [4] * 5
    assert stream.classes == 10 and stream.scenario == "class" and stream.shape == (3, 64, 64)


def test_the_released_experiment_runs_in_small(imagenet: Path, tmp_path: Path) -> None:
    """The same path from files to record, with a transformer that a test can wait for."""
    small = {"image_size": 32, "resize": 32, "patch": 16, "dim": 12, "depth": 2, "heads": 2, "epochs_per_task": 2}
    given = {"net": "bvit", "meta": 1.35, "task_sequence": ["imgnet-5"] * 6, "data_dir": str(imagenet)}
    p = settings(NAME, "paper", **given, **small)
    (record,) = compare("own", p.stream(), {"own": p.experiment()}, [0, 1], store=tmp_path / "store")
    assert record.n == 2 and len(record.test[0]) == 5 and len(record.masked[0]) == 5
    assert (record.metric("masked Acc") >= record.metric("Acc")).all() and not any(record.diverged)
    assert record.note == "repeated X-N counted once"


def test_images_that_nobody_can_download_are_asked_for_first(tmp_path: Path) -> None:
    p = settings(NAME, "paper", task_sequence=("imgnet-5",), net="bvit", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"wnids.txt: missing; data_dir must hold Tiny-ImageNet-200"):
        p.check_data()
    settings(NAME, "paper", parts=("sweep",), data_dir=str(tmp_path)).check_data()
    with pytest.raises(UserError, match="missing"):
        settings(NAME, "paper", parts=("vits",), data_dir=str(tmp_path)).check_data()


# --- what stands behind None ---


@pytest.mark.parametrize("profile", ["smoke", "quick", "paper"])
@pytest.mark.parametrize("net", NETS)
def test_every_net_has_settings_in_every_profile(profile: str, net: str) -> None:
    recipe = settings(NAME, profile, net=net).experiment()
    wanted = ViT if net in ("vit", "bvit", "hybrid") else BinaryCNN if "bcnn" in net else BinaryMLP
    assert isinstance(recipe.network, wanted)
    assert recipe.meta_scope == ("matrices" if net in ("dnn", "vit") else "binary")
    assert recipe.meta == (1.35,)


def test_a_transformer_sees_the_whole_image_unless_told_otherwise() -> None:
    assert settings(NAME, "paper", net="vit").network().resize == 256
    assert settings(NAME, "paper", net="vit", image_size=32, patch=8).network().resize == 32
    assert settings(NAME, "paper", net="vit", image_size=32, patch=8, resize=40).network().resize == 40
    tiny = next(t for t in TABLES if t["experiment"] == "tiny transformers")
    assert settings(NAME, "paper").own(**tiny["settings"], net="vit").network().resize == 28


def test_m_is_rescaled_only_where_nobody_set_it() -> None:
    free, fixed = settings(NAME, "quick"), settings(NAME, "quick", meta=1.35)
    stream = free.stream()
    assert free.experiment_on(stream).meta == pytest.approx((1.35 * (24_000 / 180) ** 0.5,))  # 180 steps a task
    assert fixed.experiment_on(stream).meta == (1.35,)
    assert settings(NAME, "quick", rescale=False).experiment_on(stream).meta == (1.35,)
    assert free.scaled(0.5, 24_000) == 0.5 and free.scaled(0.5, 6_000) == 1.0


def test_flags_of_the_original_command_line_reach_the_recipe() -> None:
    given = {"gamma": 2.0, "decay": 1e-6, "lr": 0.1, "norm": "running", "init": "gauss", "init_width": 0.3}
    given |= {"scenario": "domain", "reset": False, "hidden_layers": [8, 9], "batch_size": 7, "epochs_per_task": 3}
    recipe = settings(NAME, "quick", **given, gate="both", meta=[1, 2, 3]).experiment()
    assert recipe.network == BinaryMLP((8, 9), norm="running", init="gauss", init_width=0.3)
    assert (recipe.gamma, recipe.weight_decay, recipe.step_size, recipe.batch_size, recipe.epochs) == (
        2,
        1e-6,
        0.1,
        7,
        3,
    )
    assert not recipe.reset and not recipe.own_norms and recipe.gate == "both" and recipe.meta == (1.0, 2.0, 3.0)
    ewc = settings(NAME, "quick", ewc=True, ewc_lambda=7, rnd_consolidation=True).experiment()
    assert ewc.learner == "ewc" and ewc.settings.strength == 7 and ewc.settings.shuffled
    assert ewc.settings.values == "signs"
    si = settings(NAME, "quick", si=True, si_lambda=0.5, bin_path=True).experiment()
    assert si.learner == "si" and si.settings.strength == 0.5 and si.settings.values == "signs"
    assert settings(NAME, "quick", si=True).experiment().settings.values == "hidden"


@pytest.mark.parametrize("rival", ["ewc", "si"])
def test_other_methods_come_without_the_rule_unless_it_is_asked_for(rival: str) -> None:
    p = settings(NAME, "quick", **{rival: True})
    assert p.experiment().meta == p.experiment_on(p.stream()).meta == (0.0,)
    assert settings(NAME, "quick", **{rival: True}, meta=2).experiment_on(p.stream()).meta == (2.0,)


def test_norms_are_those_of_the_released_program_for_each_net() -> None:
    for net in ("bnn", "dnn", "bcnn", "bcnn_usps"):
        wanted = "batch" if net in ("bnn", "bcnn_usps") else "running"
        assert settings(NAME, "quick", net=net).network().norm == wanted
        for norm in ("batch", "running", "instance"):
            assert settings(NAME, "quick", net=net, norm=norm).network().norm == norm
    cut = settings(NAME, "smoke", task_sequence="digits", subsets=4)
    assert cut.network().norm == "running" and replace(cut, norm="batch").network().norm == "batch"


def test_stream_learning_has_one_optimiser_and_norms_without_parameters() -> None:
    p = settings(NAME, "smoke", task_sequence="digits", subsets=4, train_size=20)
    recipe, stream = p.experiment(), p.stream()
    assert len(stream.experiences) == 4 and len(stream.tests) == 3 and stream.name == "digits, 4 parts"
    assert not recipe.network.affine and not recipe.reset and not recipe.own_norms


def test_the_released_wiring_comes_with_the_released_optimiser() -> None:
    recipe = settings(NAME, "quick", net="bvit", as_published=True).experiment()
    assert recipe.optimizer == "adam" and recipe.network.as_published
    stream = settings(NAME, "quick").stream()
    assert settings(NAME, "quick", net="bvit", as_published=True).experiment_on(stream) == recipe


def test_stream_learning_takes_m_for_the_steps_it_makes() -> None:
    (one, m, then), (cut, _, _) = settings(NAME, "paper").streaming("cifar10")
    assert (one.subsets, cut.subsets, m, then) == (1, 20, 13.0, 156_400)
    recipe = cut.experiment()
    assert isinstance(recipe.network, BinaryCNN) and recipe.network.affine and recipe.network.norm == "running"
    assert recipe.network == BinaryCNN(init="xavier", norm="running"), "the paper's, nothing made smaller"
    assert (recipe.epochs, recipe.batch_size, recipe.step_size) == (200, 64, 1e-4)
    (_, m, then), (small, _, _) = settings(NAME, "quick").streaming("FMNIST-6k")
    assert (m, then, small.experiment().network.affine) == (2.5, 12_000, False)
    assert small.experiment().network.norm == "running"
    assert small.steps(small.stream()) == [9] * 20  # 300 images in batches of 100, three epochs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"net": "cnn"}, "net = 'cnn': allowed are bnn, dnn"),
        ({"parts": ["all"]}, f"parts = 'all': allowed are {', '.join(PARTS)}"),
        ({"scenario": "class"}, "scenario = 'class': allowed are task, domain"),
        ({"meta": [1, 2]}, "meta = (1.0, 2.0): give one coefficient, or one for each of the 3 layers"),
        ({"meta": -1}, "meta = -1.0: must be a number at least 0"),
        ({"meta": "x"}, "meta = 'x': must be a number"),
        ({"meta_scope": "all"}, "meta_scope = 'all': allowed are binary, matrices, none"),
        ({"metas": [1, 2]}, "metas = (1.0, 2.0): must begin with 0"),
        ({"task_sequence": ["mnist"]}, "keywords: 'mnist' is none of MNIST"),
        ({"task_sequence": ["MNIST", "cifar10"]}, "keywords of different shapes"),
        ({"ewc": True, "si": True}, "ewc = True, si = True: choose one"),
        ({"bin_path": True}, "bin_path = True: only with si = True"),
        ({"rnd_consolidation": True}, "rnd_consolidation = True: only with ewc = True"),
        ({"as_published": True}, "as_published = True: only for net = vit, bvit, hybrid"),
        ({"subsets": 3}, "subsets = 3: takes one data set"),
        ({"net": "vit", "dim": 10, "heads": 3}, "heads = 3: must divide dim = 10"),
        ({"reruns": ["none"]}, "reruns = 'none': allowed are all, 1024 hidden x 25 epochs"),
        ({"stream_parts": [3]}, "stream_parts = (3,): must be two"),
        ({"workers": 0}, "workers = 0: must be a whole number at least 1"),
        ({"norm": "bn"}, "norm = 'bn': allowed are batch, running, instance"),
        ({"metas": [0, 1, 1.0000001]}, "metas = (0.0, 1.0, 1.0000001): each may be named once"),
        ({"stream_parts": [3, 3]}, "stream_parts = (3, 3): each may be named once"),
        ({"net": "vit", "as_published": True, "meta": 1}, "meta = (1.0,): as_published = True trains with plain Adam"),
        ({"dim": 32}, "dim = 32: only for net = vit, bvit, hybrid, not 'bnn'"),
        ({"net": "vit", "norm": "running"}, "norm = 'running': only for net = bnn, dnn, bcnn, bcnn_usps, not 'vit'"),
        ({"net": "bcnn", "hidden_layers": [9]}, "hidden_layers = (9,): only for net = bnn, dnn, not 'bcnn'"),
        ({"batch_size": 1}, "batch_size = 1: BatchNorm needs two samples"),
        ({"widths": [0]}, "hidden = 0: must be a whole number at least 1"),
        ({"images": 0}, "images = 0: must be a whole number at least 1"),
        ({"tasks": []}, "keywords = (): must name one task at least"),
        ({"two": ["digits", "cifar10"]}, "keywords of different shapes"),
        ({"stream_data": ["FMNIST-6k-5"]}, "('FMNIST-6k-5',): groups of classes only in vit_tasks"),
    ],
)
def test_what_cannot_be_is_answered_in_one_line(given: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(NAME, "quick", **given)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


# --- the published rows ---


@pytest.mark.parametrize("table", TABLES, ids=lambda table: " ".join([table["experiment"], *table["metrics"][:1]]))
def test_published_rows_are_parameters_that_can_be_run(table: dict) -> None:
    p = settings(NAME, "paper", parts=("reruns",))
    for label, row in table["rows"].items():
        mine = p.own(**{**table["settings"], **row["settings"]})
        assert mine.sequence().name == table["stream"], label
        recipe = mine.experiment()
        assert recipe.step_size in (0.005, 0.001)
        assert recipe.batch_size == (20 if table["experiment"] in ("cifar100", "MNIST and USPS") else 100)
        assert recipe.meta == tuple(float(m) for m in {**table["settings"], **row["settings"]}["meta"])
    variants = {repr(sorted(str(v) for v in row["settings"].items())) for row in table["rows"].values()}
    assert len(variants) == len(table["rows"])  # no two rows are the same run


ORDERS = [order for order in published(NAME)["orders"] if order["experiment"] in {t["experiment"] for t in TABLES}]


@pytest.mark.parametrize("name", ["vehicles then animals", "cifar100", "MNIST and USPS"])
def test_orders_without_numbers_can_be_run_too(name: str) -> None:
    (order,) = [order for order in ORDERS if order["experiment"] == name]
    (table,) = [table for table in TABLES if table["experiment"] == name]
    assert (order["stream"], {order["better"], order["worse"]}) == (table["stream"], {*table["rows"]})
    assert settings(NAME, "paper", parts=("reruns",), reruns=(name,)).reruns == (name,)
    better = float(order["better"].removeprefix("m="))
    assert better in published(NAME)["published_m"].values()
    assert table["rows"][order["better"]]["settings"]["meta"] == [better]


def test_the_network_for_mnist_and_usps() -> None:
    network = settings(NAME, "paper", net="bcnn_usps").network().build((1, 28, 28), 10)
    shapes = {name: list(w.shape) for name, w in binary_weights(network).items()}
    assert shapes == {"conv1.weight": [64, 1, 5, 5], "conv2.weight": [64, 64, 5, 5], "fc1.weight": [10, 1600]}
    assert network.conv1.padding == network.conv2.padding == (1, 1)
    assert not any(norm.affine or norm.track_running_stats for norm in batch_norms(network))
    assert len(batch_norms(network)) == 3 and sum(p.numel() for p in network.parameters()) == 1600 + 64 * 1600 + 16000


def test_rows_of_the_spec_are_copied_right() -> None:
    """Spot checks against the tables of the rerun and the reference runs."""
    told = {(c.experiment, c.label, c.metric): (c.value, c.std, c.n) for c in claims(NAME) if c.value is not None}
    assert told["1024 hidden x 25 epochs", "m=1.35", "t1"] == (0.9604, None, 1)
    assert told["4096 hidden x 40 epochs", "m=1.35", "t2"] == (0.3262, None, 1)
    assert told["512 hidden x 10 epochs", "m=3", "t6"] == (0.778, None, 1)
    assert told["controls", "wrong sign", "t1"] == (0.231, None, 1)
    assert told["tiny transformers", "bvit + attention, matrices, m=100", "t3"] == (0.64, None, 1)
    assert told["four tasks", "m=8", "mean |fc2.weight|"] == (0.598, None, 1)
    value, _, n = told["controls", "metaplastic", "Acc"]
    assert (value, n) == (0.797, 1)
    mean = next(c for c in claims(NAME) if c.experiment == "controls" and c.n == 3 and c.label == "metaplastic")
    assert mean.value == pytest.approx(0.786, abs=1e-4) and mean.std == pytest.approx(0.00985, abs=1e-5)


def test_own_goes_back_to_the_defaults_but_keeps_the_backbone() -> None:
    p = settings(NAME, "quick", net="hybrid", dim=32, features=False, seeds=3, lr=0.5)
    fresh = p.own(net="bnn")
    assert fresh.lr is None and fresh.dim is None and not fresh.features and fresh.seeds == 3
    assert replace(fresh, net="hybrid").value("dim") == 64


def test_a_crew_shares_the_runs_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(NAME, workers=3, device="cpu").crew == 3
    monkeypatch.setenv("CLLIB_CORES", "7")
    assert settings(NAME, device="cpu").crew == 7
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settings(NAME, device="cuda").crew is None
