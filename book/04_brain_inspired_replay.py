# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Brain-inspired replay, and exaggerating what is confused
#
# **Papers.** Gido M. van de Ven, Hava T. Siegelmann, Andreas S. Tolias, *Brain-inspired replay for continual learning with
# artificial neural networks*, Nature Communications 11:4069, 2020 {cite}`vandeven2020brain`; and Jack Millichamp, Xi Chen,
# *Brain-inspired feature exaggeration in generative replay for continual learning*, 2021 {cite}`millichamp2021exaggeration`.
#
# **The claims.** A network that stores no data can keep old classes by *dreaming* them, even class by class and on natural
# images, if it dreams as a brain might: by its own feedback connections, of a class that it chooses, with units that belong to
# that class, and of inner features, not of pixels. The second paper adds that classes which are confused should be pushed
# apart in those dreams.

# %% tags=["hide-input"]
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from sklearn.manifold import TSNE

from cllib import (
    chapters,
    figures,
    front,
    generation,
    interactive,
    ledger,
    results,
    watching,
)
from cllib import runs as kept_runs
from cllib.chapters import brain_counts
from cllib.exaggeration import Exaggeration, kl, released_js
from cllib.experiments import Program, compare_orders
from cllib.learners.generative_replay import distilled
from cllib.ledger import Fact
from cllib.models.replay_vae import log_normal, log_prior_of
from cllib.streams import merged
from cllib.streams.base import inputs
from cllib.training import train

started = time.perf_counter()
figures.style()
front.show_head("04_brain_inspired_replay")

# %% [markdown]
# ## The idea
#
# One network is classifier and generator at once: an encoder $x\to h_1\to h_2$ with a classifier on $h_2$, beside it a latent
# code $z\sim\mathcal N(\mu(h_2),\sigma^2(h_2))$, and a decoder back to $\hat x$. Four things make its dreams worth learning
# from.
#
# - **Feedback.** The decoder belongs to the classifier; there is no second network.
# - **Conditional replay.** The prior over $z$ is a mixture of Gaussians $\mathcal N(m_c,s_c)$ with modes of its own for every
#   class, so a dream can be of a class that was chosen.
# - **Gates.** In the decoder's hidden layers every class may use a random part of the units, $g=\mathrm{relu}(G_c\odot a)$.
# - **Internal replay.** Where convolutions stand before the network, they are frozen, and features are dreamed, not images.

# %%
figures.dreaming()

# %% [markdown]
# After task $t-1$ a copy of the network is kept; in every step of task $t$ it dreams a batch and says what it sees (*distillation*,
# $T=2$). With $R$ the reconstruction error, $V$ the divergence from the prior, $P$ the cross-entropy,
#
# $$
# \mathcal L=\tfrac1t\,(R+V+P)_\text{new}+\big(1-\tfrac1t\big)(R+V+D)_\text{dreamed},\qquad
# D=-T^2\sum_c q_c\log\mathrm{softmax}(y/T)_c,
# $$
#
# where $q=\mathrm{softmax}(s/T)$ is the copy's answer. The same $q$ weighs the modes of the prior and the gates of what was
# dreamed: $G_q=\sum_c q_cG_c$, so a dream that looks a bit like two classes may use a bit of both.

# %% tags=["nbval-check-output"]
logits = torch.tensor([[2.0, 0.5, -1.0]])
taught, everything = logits.div(2).softmax(-1), torch.ones(3, dtype=torch.bool)
entropy = -4 * (taught * taught.log()).sum()
agree = distilled(logits, taught, everything, 2.0)
print(
    f"D where student and teacher agree: {agree:.4f}, 4 entropies of q: {entropy:.4f}"
)
z, mean, logvar = torch.zeros(1, 2), torch.tensor([[[0.0, 1.0]]]), torch.zeros(1, 1, 2)
away = log_normal(z, z, z) - log_prior_of(z, mean, logvar)
print(
    f"V at a posterior one unit away from its mode: {float(away):.2f}, at its mode:",
    end=" ",
)
print(f"{float(log_normal(z, z, z) - log_prior_of(z, 0 * mean, logvar)):.2f}")

# %% [markdown]
# ## Parameters
#
# Everything can be changed here, from the command line (`cllib run 04_brain_inspired_replay -p gates=0.5 -p recon_repulsion=0.1`)
# or by papermill; `None` means the profile's default, or the experiment's. From `experiment` on they describe one method,
# brain-inspired replay, which every table varies; the original's names stand behind.

# %% tags=["parameters", "hide-input"]
profile = None  # smoke | quick | paper
device = None  # auto | cpu | cuda
seeds = None  # runs behind the main comparison and the sweep
seed = None  # the first seed
parts = None  # main scenarios ablation exaggeration released look
workers = None  # processes that share the runs on a CPU
other_seeds = None  # runs behind everything else
light_iters = None  # steps a task in all tables but the main one
others = None  # smaller comparisons, as "EXPERIMENT; SCENARIO"
sweep = None  # repulsion recon_repulsion recon_attraction contrastive
strengths = None  # of the sweep
compared = None  # none joint LwF SI EWC s-GR BI-R "BI-R + SI"
live = None  # draw curves while the first run trains, in JupyterLab
data_dir = None  # where MNIST and CIFAR lie, or are downloaded to
order = None  # of the classes: natural | drawn, from every seed
train_size = None  # only the first so many of each class

experiment = None  # digits | MNIST-10k | split MNIST | permuted MNIST | CIFAR-10
scenario = None  # class | task | domain
tasks = None
iters = None  # a task
batch_size = None  # batch
replay_size = None  # batch_replay
lr = None
hidden = None  # fc_units
latent = None  # z_dim
modes = None  # n_modes
gates = None  # dg_prop
replay = None  # generative | current | none
distill = None
temperature = None  # temp
si = None
c = None
lowest = None  # 0: no negative importances
reconstruction = None  # bce | saturating bce | mse
recon_weight = None
kl_weight = None  # variat_weight
class_weight = None  # pred_weight
kl_scale = None
weights = None  # of the convolutions: own | random | a file
halved = None  # multiply matrices in bfloat16
repulsion = None  # repulsion, lamda_rep
divergence = None  # kl_js: js | kl | true js | overlap
pair = None  # posterior | prior
factor = None  # use_rep_f, rep_f
recon_repulsion = None  # recon_repulsion, lamda_recon_rep
recon_attraction = None  # recon_attraction, lamda_recon_atr
averaged = None  # recon_rep_aver
contrastive = None
targets = None  # c_scores: label | softmax | raw
contrast_temperature = None  # c_temp
contrast_dropout = None  # c_drop
contrast_lr = None  # c_lr
not_hidden = None  # the same noise in every step

# %%
chapter = "04_brain_inspired_replay"
p = chapters.from_notebook(chapter, globals())
runs, facts = results.view(chapter, p.profile), []
exactly = partial(Fact, profile=p.profile, exact=True)
on = partial(
    compare_orders,
    profile=p.profile,
    where=runs,
    device=p.on,
    workers=p.crew,
    progress=p.profile == "paper",
)
light, base = p.light, p.recipe()
steps = light.trained("naive", None, light.plain()).iterations
front.this_copy(chapter, p)

# %% [markdown]
# ## The data
#
# The papers' streams: **split MNIST** (5 tasks of 2 digits), **permuted MNIST** (100 tasks, in each the pixels in another
# order) and **CIFAR-100** (10 tasks of 10 classes), where the task of a test image is told (*task*), does not matter (*domain*),
# or must be found out (*class*). The default needs no download: scikit-learn's 8 × 8 digits, every fifth a test image.
# `order = "drawn"` draws the order of the classes from each seed, as the paper does.

# %% tags=["nbval-check-output"]
streams = p.streams(p.runs)
stream = streams[p.seed]
sizes = [len(task) for task in stream.experiences]
print(
    f"{stream.name}: {len(sizes)} tasks, {sizes} training samples {list(stream.shape)}"
)
print("classes:", [task.classes for task in stream.experiences])
names = [str(c) for c in range(stream.classes)]

# %% [markdown]
# ## The model
#
# What learns, for this copy and for the published sizes. The convolutions (five layers, the last one without norm or ReLU: "C3-5x16-bn",
# where *n* is for *no* nonlinearity) are not published ones: ours, made on CIFAR-10 by `python -m cllib.pretraining_conv`, are
# shipped with the book.

# %% tags=["nbval-check-output"]
numbers = brain_counts.counted()
for name, value in numbers["architecture"].items():
    print(f"{name}: {value:,.10g}")

# %%
net = base.build(
    Program((base,), (p.seed,)).shown(
        stream, results.stream_hash(stream), kept_runs.store()
    ),
    p.seed,
)
count = sum(q.numel() for q in net.network.parameters() if q.requires_grad)
print(f"this copy: {count:,} parameters learn")
if getattr(net.network, "gated", False):
    display(
        figures.open_units(
            net.network.gate1, net.network.gate2, names[: len(net.network.gate1)]
        )
    )

# %% [markdown]
# ## Learning task after task
#
# **None** trains on and on; **joint** has all data so far; **LwF** teaches the copy's answers to the *new* samples; **SI** and
# **EWC** hold parameters; **s-GR** is plain generative replay, a second network that dreams, and hard labels; **BI-R** is the
# whole of the above. While this trains in JupyterLab, curves are drawn as they grow.

# %%
measured = results.load(results.MEASURED / chapter)
main = []
if "main" in p.parts:
    methods = p.methods()
    if p.live and interactive.watched() and p.on == "cpu":
        first = {name: methods[name] for name in list(methods)[-1:]}
        curves = figures.LiveCurves()
        on("main", {p.seed: stream}, first, workers=1, log=curves)
    main = on("main", streams, methods)
    display(figures.stability(main))

# %%
if main:
    table = results.metrics_table(main, ["Acc", "Forg (first - last)"])
    table["CPU s, a run"] = {r.label: round(r.cpu_seconds / r.n, 1) for r in main}
    table["KiB kept"] = {r.label: round(sum(r.bytes.values()) / 1024) for r in main}
    display(table)

# %% [markdown]
# `Acc` is the mean of the tasks' test accuracies at the end (the original's "precision"), `Forg` what a task lost since it was
# learned; mean ± 95 % interval. Kept bytes are everything a method carries from step to step: networks, copies, optimiser,
# importances; for joint training also the data.
#
# ## What it dreams
#
# One run is looked into (one seed). The same noise, turned into each class by the network as it was after each task. Where features are
# dreamed, the real image whose features come nearest is shown.

# %% tags=["gallery", "full-width"]
seen = []
if "look" in p.parts and not net.network.by_task:
    program = Program((base,), (p.seed,))
    shown = program.shown(
        stream.to(p.on), results.stream_hash(stream), kept_runs.store()
    )
    learner, feed = program.start(shown, p.on)
    last = np.cumsum([feed.steps(k) for k in range(len(sizes))]).tolist()
    copies = watching.Copies(last)
    train(learner, shown, feed, watch=copies, progress=False)
    real = torch.cat([inputs(task.x) for task in shown.experiences])
    images = torch.cat([task.x for task in stream.experiences])
    ages = []
    for k, old in enumerate(copies.networks.values()):
        seen = sorted({c for task in stream.experiences[: k + 1] for c in task.classes})
        made = generation.dreams_of(old, seen, 4, p.seed)
        ages.append({c: generation.pictured(x, real, images) for c, x in made.items()})
    display(figures.dreams(ages, names))

# %% [markdown]
# Where dreams lie among real test samples, in the last hidden layer $h_2$ (t-SNE, which keeps neighbours and nothing else):

# %%
if seen:
    final = copies.networks[last[-1]]
    tests = [(inputs(task.x), task.y) for task in shown.tests]
    x, y = (torch.cat(parts) for parts in zip(*tests, strict=True))
    few = torch.randperm(len(y), generator=torch.Generator().manual_seed(p.seed))[:300]
    dreamed = generation.dreams_of(final, seen, max(2, 300 // len(seen)), p.seed)
    with torch.no_grad():
        hidden = [
            final.hidden(x[few]),
            *(final.hidden(part) for part in dreamed.values()),
        ]
    place = TSNE(init="pca", perplexity=20, random_state=p.seed)
    points = place.fit_transform(torch.cat(hidden).cpu().numpy())
    labels = y[few].tolist() + [c for c, part in dreamed.items() for _ in part]
    made = np.arange(len(labels)) >= len(few)
    display(figures.cloud(points, labels, made, names))

# %% [markdown]
# ## Which classes compete
#
# Left, what test samples were taken for. Right, what the exaggerating losses go by: of dreams in which one class comes
# first, which comes second.

# %% tags=["full-width"]
if seen and main:
    with torch.no_grad():
        scores = torch.cat([final(part) for part in dreamed.values()])
    record = next((r for r in main if r.label == "BI-R"), main[-1])
    display(figures.competition(record, generation.runners_up(scores), names))

# %% [markdown]
# ## How good the dreams are
#
# After every task, on the classes so far. Scores need a judge: here a classifier of the same size trained on all
# classes at once, whose last hidden layer gives the features. They mean something beside each other; beside numbers from
# another judge, such as the InceptionNet of the literature, they mean nothing. `IS` is the inception score (for the real
# samples beside), `FID` the Fréchet distance, `precision` and `recall` the $F_{1/8}$ and $F_8$ of Sajjadi et al.
# {cite}`sajjadi2018assessing`, `recognised` the share of dreams that the judge takes for the class they were dreamed of. The
# log-likelihood is given the class, by importance sampling, without the constants of Gaussians.

# %%
if seen:
    judging = p.trained("naive", None, p.plain(freeze=True))
    whole = merged(shown)
    judge = judging.build(whole, p.seed, p.on)
    train(judge, whole, judging.feed(whole, p.seed), progress=False)
    judge.network.eval()
    scored = {}
    for k, old in enumerate(copies.networks.values()):
        x, y = (torch.cat(part) for part in zip(*tests[: k + 1], strict=True))
        scored[f"task {k + 1}"] = generation.quality(old, judge.network, x, y, p.seed)
    right = (
        judge.network(torch.cat([x for x, _ in tests])).argmax(-1)
        == torch.cat([y for _, y in tests])
    ).float()
    print(f"the judge knows {right.mean():.1%} of the test samples")
    display(pd.DataFrame(scored).T.round(3))

# %% [markdown]
# ## Other streams, other scenarios
#
# The same methods where the task is told, where it does not matter, on permuted pixels, and through the frozen convolutions,
# with `light_iters` steps a task.

# %% tags=["full-width"]
smaller = []
if "scenarios" in p.parts:
    for other in p.others:
        q = light.at(other)
        smaller += on("main", q.streams(q.few), q.methods())
    display(results.wide(smaller))
    print(f"n = {p.other_seeds}")

# %% [markdown]
# Measured beforehand, at full length: split MNIST as published, and two of the reference runs' streams.

# %% tags=["full-width"]
longer = results.same(measured, experiment="main")
if longer:
    display(results.wide(longer))
    print("n =", *sorted({f"{r.n} ({r.stream})" for r in longer}))

# %% [markdown]
# Half the bits: the same runs with matrices multiplied in bfloat16 (`halved`), and the difference paired by seed.

# %%
half = results.same(measured, experiment="bfloat16")
for record in half:
    twin = next(
        r for r in longer if (r.stream, r.label) == (record.stream, record.label)
    )
    rows = [twin.seeds.index(seed) for seed in record.seeds if seed in twin.seeds]
    gained = record.metric("Acc")[: len(rows)] - twin.metric("Acc")[rows]
    print(
        f"{record.stream}, {record.label}: {record.metric('Acc').mean():.4f}", end=" "
    )
    print(f"in bfloat16, {', '.join(f'{g:+.4f}' for g in gained)} by seed;", end=" ")
    print(
        f"{record.cpu_seconds / record.n:.0f} for {twin.cpu_seconds / twin.n:.0f} CPU s"
    )

# %% [markdown]
# ## Which part does what
#
# Brain-inspired replay without one of its parts, and plain generative replay with one of them added.

# %%
if "ablation" in p.parts:
    tables = [*light.without().items(), *light.added().items()]
    ablated = on("ablation", light.streams(light.few), dict(tables))
    print(f"{steps} steps a task, n = {p.other_seeds}")
    display(figures.intervals(ablated, ["Acc"]))

# %% [markdown]
# ## Exaggeration
#
# Of every dream the copy's largest score says whose it is, $a$, the second largest with whom it competes, $b$. Then
#
# - **repulsion** adds $\lambda/\mathrm{div}$ to the loss, where div is between the posterior of the dream and that of another of
#   class $b$;
# - **reconstruction repulsion** adds $\lambda/R(\bar x_b,\hat x)$, with $\bar x_b$ the mean of the dreams of $b$;
# - **reconstruction attraction** adds $\lambda R(\bar x_a,\hat x)$;
# - **contrastive learning** pulls two views of a dream, and dreams of one class, together in $h_2$.
#
# The released default is $\lambda=10^{-6}$. Here the whole range, every run paired by seed with one that has $\lambda=0$: all
# random draws but the new loss's own are the same.

# %% tags=["full-width"]
if "exaggeration" in p.parts and p.exaggerates:
    swept = {
        r.label: r for r in on("exaggeration", light.streams(light.runs), light.swept())
    }
    by_kind = {
        kind: {s: swept[f"{kind} {s:g}"] for s in p.strengths} for kind in p.sweep
    }
    print(f"{steps} steps a task; without: {np.mean(swept['none'].metric('Acc')):.3f}")
    display(figures.sweep(by_kind, swept["none"]))

# %% [markdown]
# In JupyterLab, the next cell has sliders: the network learns the stream again, for so many steps a task, with what you set exaggerated.


# %%
def retrain(repulsion=0.0, recon_repulsion=0.1, recon_attraction=0.0, steps=10):
    one = replace(p, iters=steps, repulsion=repulsion, recon_repulsion=recon_repulsion)
    own = replace(one, recon_attraction=recon_attraction).recipe()
    twins = {"as set": own, "calm": one.recipe(exaggerate=Exaggeration())}
    told = {"where": None, "probe_every": steps}
    display(figures.stability(on("tried", p.streams([p.seed]), twins, **told)))


if p.exaggerates:
    interactive.explore(
        retrain,
        repulsion=(0.0, 1.0, 0.01),
        recon_repulsion=(0.0, 1.0, 0.01),
        recon_attraction=(0.0, 1.0, 0.01),
        steps=(10, 200, 10),
    )

# %% [markdown]
# The same at full length, measured beforehand: reconstructions repelled and attracted with one weight, and repulsion by the released
# divergence.

# %%
kinds = {"reconstructions": "reconstructions, {}", "repulsion": "repulsion, JS, {}"}
weights_of = {"1e-6": 1e-6, "1e-2": 1e-2, ".1": 0.1, "1": 1.0, "100": 100.0}
twin = [r for r in main if r.label == "BI-R"]
long = {}
if twin:
    told = {"seeds": twin[0].seeds, "ends": twin[0].ends}
    long = {
        r.label: r
        for r in results.same(
            measured, experiment="reference", stream=stream.name, **told
        )
    }
if long:
    shown_at = {
        kind: {
            w: long[form.format(k)]
            for k, w in weights_of.items()
            if form.format(k) in long
        }
        for kind, form in kinds.items()
    }
    display(figures.sweep(shown_at, twin[0]))

# %% [markdown]
# ## What the released code really does
#
# Read, and run where it runs:
#
# - **The README's `--repulsion` command crashes** on its first replayed batch: the function was deleted, its call was left. There were
#   three working versions before, of different losses (prior mode; posterior of another dream; overlap of intervals). Here `pair` and
#   `divergence` choose; the default is what README and paper describe.
# - **Its "Jensen-Shannon" divergence** is to the distribution of the *average of two variables*, not to the mixture: for equal
#   distributions it is $\tfrac z2(1-\ln2)$, not 0. So $1/\mathrm{div}$ cannot exceed .0652 at $z=100$, and with $\lambda=10^{-6}$ the whole term
#   stays below $10^{-7}$, in a loss of several units.
# - **`--contrastive` and `--not-hidden` reseed torch in every step**: all noise is then the same, step after step. That is all that
#   `--not-hidden` changes. The second "view" of the contrastive loss is drawn by a network that is never trained, and the
#   head learns at $10^{-8}$, so it stays a random projection; its weight cannot be set (it is 1).
# - **`--use-rep-f`** keeps only dreams with $p_a<20\,p_b$. The copy is sure of nearly all its dreams, so nearly nothing is kept.
# - **Gates are no buffers** in the original: a model loaded with another seed decodes garbage. Told the task, new data use gates of
#   classes 0 and 1 in every task, dreams those of the true classes. Here gates are saved, and always by true class.
# - **KL is divided by 3,072** on CIFAR, though 1,024 features are dreamed, so it weighs a third of what it says (`kl_scale`).
# - **Importances of SI may be negative** and are not clipped (`lowest = 0` clips), hold encoder and classifier only, and come
#   with $c=10^8$ on CIFAR-100.
# - **100 epochs of pretraining** at the documented batch are 19,500 steps; the checkpoint says 39,000.
# - **Runs with other losses overwrite each other's results**, and single runs are compared, at differences below the spread of seeds.
#
# On the same dreams, the released divergence and Kullback-Leibler's, of two equal and of two distant distributions:

# %% tags=["nbval-check-output"]
near, far = torch.zeros(1, 100), torch.full((1, 100), 3.0)
for name, other in (("equal", near), ("distant", far)):
    pair_of = near, near, other, near
    print(
        f"{name}: released JS {float(released_js(*pair_of)):.2f}, KL {float(kl(*pair_of)):.2f}"
    )

# %%
if "released" in p.parts and p.exaggerates:
    told = on("released", light.streams(light.few), light.released())
    print(f"{steps} steps a task")
    display(figures.intervals(told, ["Acc"]))

# %% [markdown]
# In how many of 60 steps of each later task does any dream have a competitor within the factor of 20?

# %%
if "released" in p.parts and p.exaggerates and p.experiment == "digits":
    shares, few = [], p.streams(p.few)
    for k in p.few:
        recipe = replace(p, iters=60).recipe(
            exaggerate=Exaggeration(repulsion=1e-6, factor=20.0)
        )
        learner, feed = Program((recipe,), (k,)).start(few[k], "cpu")
        close = []
        train(
            learner,
            few[k],
            feed,
            progress=False,
            watch=lambda _, one, to=close: to.append(
                (one.learned, float(one.kept) > 0)
            ),
        )
        shares.append(
            [
                np.mean([any_ for task, any_ in close if task == t])
                for t in range(1, len(sizes))
            ]
        )
    display(
        pd.DataFrame(
            shares,
            index=[f"seed {k}" for k in p.few],
            columns=[f"task {t + 2}" for t in range(len(sizes) - 1)],
        ).round(2)
    )
    for t, column in enumerate(zip(*shares, strict=True)):
        label = f"steps of task {t + 2} with any competitor"
        facts.append(
            Fact(
                "rep_f 20",
                label,
                p.profile,
                tuple(map(float, column)),
                stream=stream.name,
            )
        )

# %% [markdown]
# And what the original programs were run with for the reference runs (`parts = ["reference"]`; it takes long, so it was done
# beforehand).

# %%
if "reference" in p.parts:
    on("reference", streams, p.reference())
    if p.protocol.conv:
        on("main", streams, p.stiff())

# %% [markdown]
# (ledger4)=
# ## The claims ledger
#
# Published numbers and orders, and what came out here, under the rules of {doc}`chapter 1 <01_memory_head>`. CIFAR-100 takes a
# GPU; where it was not run the row says so. A small stream shows a **mechanism only**. "Reference runs" are not published: the
# original programs, run on small data for this chapter's specification.

# %%
results.beforehand(measured)

# %%
facts += [
    exactly(group, label, values=(float(v),))
    for group, values in numbers.items()
    for label, v in values.items()
]
facts += [
    exactly("times", f"{m} minutes, published", values=(float(m),)) for m in (4, 12, 60)
]
for record in [*measured, *results.load(runs)]:
    facts += brain_counts.minutes(record, p.profile)
ledger.save_facts(facts, runs)
judged = ledger.whole(chapter, runs)
figures.verdicts(judged)

# %% tags=["hide-output"]
with pd.option_context("display.max_rows", None):
    display(ledger.readable(judged))

# %% [markdown]
# **What we make of it**, from the quick profile and the runs measured beforehand:
#
# - **The order of methods holds.** Class by class nothing without a generator keeps an old class: SI and EWC are where naive
#   training is. Plain generative replay keeps some, with a wide spread; brain-inspired replay keeps nearly all, close to
#   joint training. The reference runs, digits and MNIST through convolutions alike, agree with ours in almost every line.
# - **Told the task, the problem is gone** for nearly all. Plain generative replay falls below doing nothing, as published, if with a
#   wide spread; on permuted pixels it falls furthest.
# - **On MNIST itself** plain generative replay reaches what is published for it, and brain-inspired replay hardly more: with two
#   digits a task and 2,000 steps for each, plain dreams are good enough. The differences are those of short training and small data.
# - **What its parts do depends on how long is trained.** In the short runs of the ablation, gates and distillation help and
#   the class prior hardly does; with the full number of steps only distillation is missed. Added to plain replay, either a class
#   prior or gates alone do nearly everything: what matters is that a dream can be *of a class*. Feedback by itself adds nothing, but it
#   saves a network.
# - **Synaptic intelligence neither helps nor harms** at the strength for MNIST. With larger ones on features both runs fell, as the
#   reference runs did, but so unequally that two runs prove nothing.
# - **Dreams are alike.** Within a class they hardly differ: the code is little used, as it is with a divergence that weighs so little.
#   The judge takes every one for its class, precision is high, recall is not.
# - **Exaggeration is within noise where it is weak, and harms where it is strong.** At the released default nothing changes,
#   by construction. Reconstructions that are pushed apart with weight 1 cost accuracy, and so does a contrastive loss of that
#   weight; with raw scores for targets, as released, it ruins the network. Repulsion between distributions stays within noise
#   over its whole range, in all forms but the overlap. That it helps the classes of early tasks on CIFAR-100 was not tried.
# - **Noise that is the same in every step** does less harm than one would think.
# - No number on CIFAR-100 could be tried: that takes a GPU. The code is the same, and starts on the official files.
#
# (where-we-differ-4)=
# ### Where we differ
#
# What the papers say, what the programs do (brain-inspired replay's, and the extension's), what we do, and what switches it ("none": it
# cannot be switched; empty: it is not said).
#
# | | as published | as released | ours | switch |
# |---|---|---|---|---|
# | reconstruction error of pixels | cross-entropy | from sigmoids in single precision: where one is 1 and should not be, 100 and no gradient | from logits, exact | `reconstruction = "saturating bce"` |
# | attraction where the factor keeps no dream | | none | none, as released | none |
# | `--repulsion` | KL or JS, factor 20 | crashes; three earlier losses | between posteriors | `pair`, `divergence`, `factor` |
# | a competitor that is not in the batch | | a random class stands in | is left out | none |
# | exemplars | | class means on request | class means | `averaged` |
# | contrastive views | augmented images | drawn by a network that never learned | two dropout masks on $h_2$ | `contrast_dropout` |
# | contrastive targets, head, weight | | raw scores or labels, $10^{-8}$, 1 | labels, as the network learns, 0 | `targets`, `contrast_lr`, `contrastive` |
# | noise of a step | new | the same in each, with `--contrastive` and `--not-hidden` | new | `not_hidden = True` |
# | divisor of KL on CIFAR | | 3,072 | 3,072 | `kl_scale` |
# | gradient along SI's path | of the batch's loss, as SI's author has it | of the whole loss, penalty included | as released | none here; `path = "batch"` of the learner `si` |
# | importances of SI in BI-R | | may be negative; encoder and classifier only | as released | `lowest = 0` |
# | importances of SI alone | | may be negative | a negative path integral counts as none | none |
# | gates where the task is told | of true classes | of new data by place in the task | of true classes | none |
# | what belongs to no task, told the task | | scored under each old task | under the old tasks in turn | none |
# | softmax of the methods compared | | over classes that have come | over all classes | none |
# | last batch of an epoch | | dropped | kept, smaller | none |
# | convolutions on small streams | | frozen for BI-R only | frozen for all methods | none |
# | image replay behind convolutions | | | decoded by mirrored convolutions of our own | none |
# | EWC's Fisher information | | | sampled labels | `fisher` of the learner `ewc` |
#
# With `reconstruction` as released, what exaggerates strongly learns otherwise, for a logit past 17 is then no longer corrected. In the
# ledger, reference runs of the original with `recon_repulsion` and reconstructions at .1 and 1 stand beside ours from logits; on digits
# both kinds ended within a point of each other, three seeds each, which is less than between seeds.
#
# ## Try this
#
# 1. Set `gates = 0`, then `0.95`, with `iters = 60` and with the default. When do gates matter?
# 2. Set `distill = False`. Which classes suffer?
# 3. Set `recon_repulsion = 1`. Look at the dreams: what does pushing reconstructions apart do to them?
# 4. Set `experiment = "split MNIST"` (downloads 12 MB; hours for all tables, minutes with `parts = ["main"]`, `seeds = 1`).
# 5. Set `experiment = "CIFAR-100"`, `order = "drawn"`, `halved = True`, on a GPU.
#
# ```{admonition} Answers to 1 and 3
# :class: dropdown
# In short runs, see the ablation; trained to the end, neither changes much: the class prior already says which class is meant, and ten
# units are enough for a digit. And reconstructions that must be far from the competitor's mean leave their own class's too: the dreams
# lose likeness, and the next copy learns from them.
# ```
#
# The papers are listed under {doc}`references`.

# %% tags=["hide-input"]
Markdown(
    f"{results.this_run(p)}. **{time.perf_counter() - started:.0f} s** from the first cell to here."
)
