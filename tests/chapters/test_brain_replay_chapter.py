"""Chapter 4's parameters, its tables, and the numbers that follow from its rules."""

from dataclasses import replace
from typing import Any

import pytest

from cllib.chapters import brain_counts, parse, settings
from cllib.chapters.brain_replay import METHODS, NAME
from cllib.errors import UserError
from cllib.learners import LEARNERS
from cllib.ledger import Fact, claims, judge
from cllib.results import Record
from cllib.streams.protocols import PROTOCOLS

SMOKE, QUICK, PAPER = (settings(NAME, profile) for profile in ("smoke", "quick", "paper"))


def test_the_paper_profile_is_the_published_experiment() -> None:
    recipe, vae = PAPER.recipe(), PAPER.vae()
    assert (recipe.step_size, recipe.batch_size, recipe.iterations, recipe.optimizer) == (1e-4, 256, 5000, "adam")
    assert (vae.hidden, vae.latent, vae.gates, vae.stem, vae.reconstruction) == (2000, 100, 0.7, "conv", "mse")
    assert recipe.settings.distill and recipe.settings.temperature == 2 and recipe.settings.si == 0
    with_si = METHODS["BI-R + SI"](PAPER)
    assert (with_si.settings.si, with_si.network.gates) == (1e8, 0.6)
    assert PAPER.order == "drawn" and PAPER.seeds == 10


def test_knobs_given_beat_the_protocol() -> None:
    p = settings(
        NAME, "quick", iters=7, batch_size=3, hidden=11, latent=4, gates=0.25, lr=0.5, si=True, c=3.0, temperature=5.0
    )
    recipe = p.recipe()
    assert (recipe.iterations, recipe.batch_size, recipe.step_size) == (7, 3, 0.5)
    assert (recipe.network.hidden, recipe.network.latent, recipe.network.gates) == (11, 4, 0.25)
    assert (recipe.settings.si, recipe.settings.temperature) == (3.0, 5.0)


def test_released_names_say_what_they_do() -> None:
    p = settings(
        NAME,
        "quick",
        contrastive=0.5,
        contrast_temperature=0.2,
        contrast_dropout=0.1,
        contrast_lr=1e-8,
        not_hidden=True,
    )
    how = p.exaggeration()
    assert (how.contrastive, how.temperature, how.dropout, how.head_step_size, how.same_noise) == (
        0.5,
        0.2,
        0.1,
        1e-8,
        True,
    )
    assert p.recipe().settings.exaggerate == how and p.recipe().settings.temperature == 2


def test_the_reconstruction_error_is_a_knob_of_the_experiment_it_is_given_for() -> None:
    p = settings(NAME, "quick", reconstruction="saturating bce")
    made = [p.vae(), p.separate().settings.generator, *(r.network for r in p.swept().values())]
    assert {vae.reconstruction for vae in made} == {"saturating bce"}
    assert QUICK.vae().reconstruction == "bce"
    assert [p.at(other).vae().reconstruction for other in p.others] == ["saturating bce"] * 2 + ["bce", "mse"]
    with pytest.raises(UserError, match=r"^reconstruction = 'bce': .*needs 'mse'$"):
        settings(NAME, "paper", reconstruction="bce")


def test_every_method_is_what_it_is_called() -> None:
    methods = QUICK.methods()
    kinds = {name: recipe.learner for name, recipe in methods.items()}
    assert kinds == {
        "none": "naive",
        "joint": "joint",
        "SI": "si",
        "EWC": "ewc",
        "LwF": "generative",
        "s-GR": "generative",
        "BI-R": "generative",
        "BI-R + SI": "generative",
    }
    assert methods["LwF"].settings.replay == "current" and methods["LwF"].settings.distill
    plain = methods["s-GR"].settings
    assert not plain.distill and (plain.generator.prior, plain.generator.gates) == ("standard", 0.0)
    assert methods["BI-R"].settings.si == 0 and methods["BI-R + SI"].settings.si == 0.1
    assert len({(r.step_size, r.batch_size, r.iterations, r.optimizer) for r in methods.values()}) == 1


def test_an_ablation_leaves_out_one_thing() -> None:
    base, without = QUICK.recipe(), QUICK.without()
    assert without["BI-R"] == base
    assert replace(without["... without gates"], network=base.network) == base
    assert without["... without gates"].network == replace(base.network, gates=0.0)
    assert without["... without class prior"].network == replace(base.network, prior="standard")
    assert without["... without distillation"].settings == replace(base.settings, distill=False)
    assert without["... without feedback"].settings == replace(base.settings, generator=base.network)


def test_an_addition_adds_one_thing() -> None:
    added = QUICK.added()
    plain = added["s-GR"]
    assert plain == QUICK.methods()["s-GR"]
    generator = plain.settings.generator
    assert added["... with class prior"].settings.generator == replace(generator, prior="classes")
    assert added["... with gates"].settings.generator == replace(generator, gates=0.8)
    assert added["... with distillation"].settings == replace(plain.settings, distill=True)
    assert added["... with feedback"].network == generator and added["... with feedback"].settings.generator is None


def test_images_are_replayed_where_the_paper_compares_them() -> None:
    without, added = PAPER.without(), PAPER.added()
    assert not without["... not internal"].network.internal and without["... not internal"].network.freeze
    assert not added["s-GR"].settings.generator.internal and not added["s-GR"].settings.generator.freeze
    assert not added["s-GR"].network.freeze and added["... internal"].network.freeze
    assert added["... internal"].settings.generator.internal
    small = QUICK.at("convolved digits; class")
    assert "... not internal" not in small.without() and small.plain().freeze


def test_the_sweep_changes_one_strength_at_a_time() -> None:
    swept = QUICK.swept()
    assert len(swept) == 1 + len(QUICK.sweep) * len(QUICK.strengths)
    assert swept["none"] == QUICK.recipe()
    for kind in QUICK.sweep:
        how = swept[f"{kind} 0.01"].settings.exaggerate
        assert how == replace(QUICK.exaggeration(), **{kind: 0.01})


@pytest.mark.parametrize("profile", ["smoke", "quick", "paper"])
def test_every_other_experiment_has_all_methods(profile: str) -> None:
    p = settings(NAME, profile)
    for other in p.others:
        q = p.at(other)
        assert set(q.methods()) == set(p.compared)
        assert q.light.recipe().iterations == (p.light_iters or PROTOCOLS[q.experiment].iters)
        assert all(recipe.learner in LEARNERS for recipe in q.methods().values())


@pytest.mark.parametrize("given", [{"distill": False}, {"replay": "none"}, {"replay": "current"}, {"scenario": "task"}])
def test_what_cannot_be_exaggerated_is_left_out(given: dict[str, Any]) -> None:
    p = settings(NAME, "quick", **given)
    assert not p.exaggerates and p.swept() == p.released() == {}
    assert QUICK.exaggerates and p.methods() and p.without() and p.added()


@pytest.mark.parametrize("given", [{"recon_repulsion": 1.0}, {"not_hidden": True}, {"repulsion": 1.0, "pair": "prior"}])
def test_every_table_can_be_made_of_a_chapter_that_exaggerates(given: dict[str, Any]) -> None:
    p = settings(NAME, "quick", **given)
    for q in (p, *(p.light.at(other) for other in p.others)):
        tables = [q.methods(), q.without(), q.added(), q.swept(), q.released()]
        assert q.exaggeration().on == (q.scenario != "task") == bool(tables[-1])
    repelled = p.without()["... without class prior"].settings.exaggerate
    assert repelled == replace(p.exaggeration(), pair="posterior")


def test_1_10_ablations_have_the_published_gates() -> None:
    task, permuted = PAPER.at("CIFAR-100; task"), PAPER.at("permuted MNIST; domain")
    shut = {"feedback": (0.7, 0.3, 0.8), "distillation": (0.8, 0.0, 0.6), "class prior": (0.6, 0.0, 0.0)}
    for part, published in shut.items():
        found = [p.without()[f"... without {part}"] for p in (PAPER, task, permuted)]
        networks = [r.settings.generator if part == "feedback" else r.network for r in found]
        assert tuple(network.gates for network in networks) == published
    alone = [p.added()["... with gates"].settings.generator.gates for p in (PAPER, task, permuted)]
    assert alone == [0.7, 0.1, 0.2]
    assert [p.without()["... not internal"].network.gates for p in (PAPER, task)] == [0.9, 0.8]
    given = settings(NAME, "paper", gates=0.5).without()
    assert given["... without distillation"].network.gates == 0.5


def test_1_5_gates_beside_synaptic_intelligence_differ_class_by_class_only() -> None:
    assert METHODS["BI-R + SI"](PAPER).network.gates == 0.6
    assert METHODS["BI-R + SI"](PAPER.at("CIFAR-100; task")).network.gates == 0.0


def test_only_whole_runs_answer_claims_about_time(made: list[Record]) -> None:
    learner = {"iterations": 2000, "batch_size": 128}
    record = replace(
        made[0], experiment="main", stream="split MNIST, class", label="BI-R", learner=learner, seconds=360.0
    )
    (fact,) = brain_counts.minutes(record, "quick")
    assert fact.values == (360 / record.n / 60,) and fact.label == "split MNIST, BI-R: minutes of a run"
    for change in ({"whole": False}, {"learner": {**learner, "iterations": 10}}, {"label": "s-GR"}, {"stream": "x"}):
        assert brain_counts.minutes(replace(record, **change), "quick") == []


def test_gates_of_permuted_streams_belong_to_tasks() -> None:
    q = PAPER.at("permuted MNIST; domain")
    assert q.vae().tasks == 100 and q.vae().stem == "none" and PAPER.vae().tasks is None


def test_an_order_of_classes_is_drawn_from_every_seed() -> None:
    p = settings(NAME, "quick", order="drawn")
    streams = p.streams([0, 1])
    assert not streams[0].experiences[0].y.equal(streams[1].experiences[0].y) or streams[0].note != streams[1].note
    same = QUICK.streams([0, 1])
    assert same[0] is same[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"experiment": "MNIST"}, "experiment"),
        ({"scenario": "all"}, "scenario"),
        ({"experiment": "permuted digits"}, "scenario"),
        ({"others": ("digits; nothing",)}, "nothing"),
        ({"others": ("nothing; class",)}, "others"),
        ({"sweep": ("gates",)}, "sweep"),
        ({"compared": ("GR",)}, "compared"),
        ({"parts": ("all",)}, "parts"),
        ({"gates": 1.0}, "gates"),
        ({"order": "alphabetic"}, "order"),
        ({"divergence": "jensen"}, "divergence"),
        ({"recon_repulsion": -1.0}, "recon_repulsion"),
        ({"recon_repulsion": 1.0, "distill": False}, "exaggerate"),
        ({"recon_repulsion": 1.0, "scenario": "task"}, "task"),
        ({"light_iters": 0}, "light_iters"),
        ({"strengths": (-1.0,)}, "strengths"),
        ({"c": -1.0}, "c"),
        ({"hidden": 0}, "hidden"),
        ({"latent": 0}, "latent"),
        ({"lr": 0.0}, "lr"),
        ({"lr": -1.0}, "^lr"),
        ({"contrast_temperature": 0.0}, "contrast_temperature"),
        ({"contrast_dropout": 1.0}, "contrast_dropout"),
        ({"contrast_lr": -1.0}, "contrast_lr"),
        ({"weights": "nowhere"}, "nowhere"),
        ({"sweep": ()}, "sweep"),
        ({"compared": ()}, "compared"),
        ({"factor": 0.0}, "factor"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(NAME, "quick", **given)


def test_values_come_from_a_command_line() -> None:
    given = parse(NAME, {"factor": "20", "others": "digits; task,digits; domain", "halved": "true", "gates": "none"})
    assert given == {"factor": 20.0, "others": ("digits; task", "digits; domain"), "halved": True, "gates": None}


def test_12_counts_are_the_published_ones() -> None:
    counted = {
        (group, name): value for group, values in brain_counts.counted().items() for name, value in values.items()
    }
    asked = [c for c in claims(NAME) if c.source == "original program, counted"]
    facts = [Fact(group, name, "quick", (float(value),), exact=True) for (group, name), value in counted.items()]
    verdicts = {c.label: judge(c, facts)["verdict"] for c in asked}
    assert len(verdicts) == 27
    assert {name for name, verdict in verdicts.items() if verdict != "reproduced"} == {
        "the extension's network, with what lies idle"
    }


def test_every_claim_is_answered_by_a_table_that_exists() -> None:
    mine = {"main": set(METHODS), "ablation": {*PAPER.without(), *PAPER.added()}, "exaggeration": set(QUICK.swept())}
    mine["reference"], mine["main"] = set(QUICK.reference()), {*METHODS, *QUICK.stiff()}
    elsewhere = {"generative classifier", "SLDA", "labels trick", "CWR", "AR1"}  # methods that are not ours
    for claim in claims(NAME):
        labels = {claim.label, claim.worse} - {None}
        if claim.experiment in mine:
            assert labels <= mine[claim.experiment] | elsewhere, claim
