"""Images a second of a BiRT step in the last task beside a straight implementation. `make bench` runs it.

The straight implementation is the method in the form of the released program: attention written out, content and
position each in full for every image, the task block once a token, new and replayed samples one after the other with a
backward pass and an optimiser step each, and a whole clone, g included, for a teacher, which answers for all tasks.
Same network, same sizes, same noise, one thread.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from time import process_time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cllib.datasets.labelled import Labelled
from cllib.experiments import Program
from cllib.learners.birt import BiRT, BiRTSettings, binary_cross_entropy
from cllib.models.convit import GPSA, AttentionHalf, ConViT
from cllib.models.split import Split
from cllib.recipes import Recipe
from cllib.streams.scenarios import sequence, split
from cllib.threads import one_thread

SIZES = {
    "digits: D = 48, 16 tokens, 5 tasks, 32 + 32": (ConViT(2, 48, 4, 4, drop_path=0.0), (1, 8, 8), 5, 32, 30),
    "CIFAR-100: D = 384, 64 tokens, 10 tasks, 32 + 32": (ConViT(normalize="cifar"), (3, 32, 32), 10, 32, 4),
}
STD, P = 1.0, 0.5


def attention(attn: GPSA, x: Tensor, noisy: bool) -> Tensor:
    """Gated positional self-attention, written out."""
    b, n, d = x.shape
    qk = attn.qk(x).reshape(b, n, 2, attn.heads, d // attn.heads).permute(2, 0, 3, 1, 4)
    v = attn.v(x).reshape(b, n, attn.heads, d // attn.heads).permute(0, 2, 1, 3)
    content = (qk[0] @ qk[1].transpose(-2, -1) * (d // attn.heads) ** -0.5).softmax(-1)
    places = attn.pos_proj(attn.places.expand(b, -1, -1, -1)).permute(0, 3, 1, 2).softmax(-1)
    gate = attn.gating.view(1, -1, 1, 1).sigmoid()
    a = (1 - gate) * content + gate * places
    a = a / a.sum(-1, keepdim=True)
    if noisy:
        chosen = torch.rand(b) < P
        a = torch.where(chosen.view(-1, 1, 1, 1), a + STD * torch.randn_like(a), a)
    return attn.proj((a @ v).transpose(1, 2).reshape(b, n, d))


def whole(net: Split, x: Tensor, noisy: bool, stored: bool) -> tuple[Tensor, Tensor]:
    """Logits and divergence logits, of images or of stored representations."""
    below, above = net.below, net.above
    halves = [*below.halves, *above.halves]
    if not stored:
        x = below.patches((x - below.mean) / below.std).flatten(2).transpose(1, 2) + below.pos
    for half in halves[len(below.halves) :] if stored else halves:
        x = x + half.drop(attention(half.attn, half.norm(x), noisy)) if isinstance(half, AttentionHalf) else half(x)
    found = []
    for token in above.tokens:  # once a token
        z = torch.cat([token.expand(len(x), 1, -1), x], 1)
        block = above.block
        y, attn = block.norm1(z), block.attn
        q, k, v = (
            f(part).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for f, part in zip((attn.q, attn.k, attn.v), (y[:, :1], y, y), strict=True)
        )
        a = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        e = z[:, :1] + block.drop(attn.proj((a @ v).transpose(1, 2).flatten(2)))
        e = e + block.drop(block.mlp(block.norm2(e)))
        found.append(e[:, 0])
    logits = torch.cat([head(e) for head, e in zip(above.heads, found, strict=True)], 1)
    return logits, above.divergence(found[-1])


def straight_step(net: Split, teacher: Split, optimiser: torch.optim.Optimizer, new: Any, old: Any, seen: int) -> None:
    """A step on new images, then one on stored representations."""
    for (x, y), noisy, beta in ((new, False, 0.05), (old, True, 0.01)):
        optimiser.zero_grad()
        if noisy:
            partner = torch.randperm(len(y))
            x = 0.7 * x + 0.3 * x[partner]
        logits, diverged = whole(net, x, noisy, noisy)
        with torch.no_grad():
            taught = whole(teacher, x, False, noisy)[0][:, :seen]
        loss = binary_cross_entropy(logits, F.one_hot(y, logits.shape[1]).float())
        loss = loss + beta * F.pairwise_distance(logits[:, :seen], taught).mean()
        told = F.one_hot((y - seen + 1).clamp(min=0), diverged.shape[1]).float()
        (loss + 0.1 * binary_cross_entropy(diverged, told)).backward()
        optimiser.step()


def trained(config: ConViT, shape: tuple[int, ...], tasks: int, batch: int) -> tuple[BiRT, Tensor, Tensor]:
    """A learner in its last task, all mechanisms on, and a batch for it."""
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(2 * tasks).repeat_interleave(batch)
    x = torch.rand(len(y), *shape, generator=draws)
    data = Labelled("random", x, y, x[:: batch // 2], y[:: batch // 2], names=tuple(map(str, range(2 * tasks))))
    stream = sequence("random", split(data, tasks), "class")
    settings = BiRTSettings(buffer_size=8 * tasks, ema_rate=0.01, tune_epochs=0, attention_std=STD)
    recipe = Recipe("birt", settings, config, optimizer="adamw", step_size=1e-4, batch_size=batch)
    learner, feed = Program((recipe,), (0,)).start(stream, "cpu")
    for e, part in enumerate(stream.experiences):
        learner.begin(part)
        if e == 0:
            learner.observe(*next(feed.batches(0)))
        if e < tasks - 1:
            learner.finish(part)
    return learner, *next(feed.batches(tasks - 1))


def timed(step: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds."""
    step()
    spent = []
    for _ in range(repeats):
        begin = process_time()
        step()
        spent.append(process_time() - begin)
    return median(spent)


def main() -> None:
    """Print images a second, new and replayed ones counted."""
    names = argparse.ArgumentParser()
    names.add_argument("--repeats", type=float, default=1.0)
    more = names.parse_args().repeats
    with one_thread():
        for name, size in SIZES.items():
            compared(name, *size[:-1], max(2, int(size[-1] * more)))


def compared(name: str, config: ConViT, shape: tuple[int, ...], tasks: int, batch: int, count: int) -> None:
    """Print one size."""
    learner, x, y = trained(config, shape, tasks, batch)
    net = deepcopy(learner.split)
    teacher = deepcopy(net).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-4, weight_decay=1e-6)
    stored = learner.memory.take(torch.arange(batch) % len(learner.memory))
    theirs = timed(lambda: straight_step(net, teacher, optimiser, (x, y), stored, learner.old), count)
    ours = timed(lambda: learner.observe(x, y), count)
    learner.halved = True
    half = timed(lambda: learner.observe(x, y), count)
    learner.halved, learner.semantic = False, None
    alone = timed(lambda: learner.observe(x, y), count)
    speeds = {"straight": theirs, "ours": ours, "in bfloat16": half, "without a teacher": alone}
    told = [f"{kind} {2 * batch / t:.0f} images/s ({theirs / t:.2f} times)" for kind, t in speeds.items()]
    print(f"{name}: {', '.join(told)}")


if __name__ == "__main__":
    main()
