"""Checks of chapter 11's exercises: pairs and thresholds one by one, models run by hand, planted latents."""

import functools
import itertools
import random
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from interp_edu import features, tinyworld
from interp_edu.checks.activation_patching import _agree, _run
from interp_edu.checks.attention_heads import _first, _number, _shaped
from interp_edu.checks.core import Judge, exercise
from interp_edu.checks.induction_heads import _nearest, _numbers
from interp_edu.checks.transformer import _matrices
from interp_edu.hooks import run_with_cache
from interp_edu.pretrained import SAES, load, load_sae, untrained
from interp_edu.sparse_autoencoders import SAE
from interp_edu.transformer import Transformer

Named = dict[str, Tensor]
Slips = Callable[[], dict[str, float]]
SIZES = ((9, 0.3), (40, 0.8), (25, 0.0), (60, 0.5))  # words, and which share of them has a zero
SITE, LAURA, KEEP = SAES["resid"], tinyworld.TOKENIZER.id("Laura"), "keep the axis of dimensions, [size, d]"


def _close(judge: Judge, got: Any, want: float, claim: str, slips: Slips, tol: float = 1e-4, near: str = "") -> None:
    """A number, within tol; a slip that leads to the same number is named, and `near` is said of one that is close."""
    value = float(_number(judge, got, "the result"))
    off = abs(value - want)
    known = {} if off <= tol else {text: round(float(slip), 5) for text, slip in slips().items()}
    likely = (_nearest(round(value, 5), known, tol) if known else "") or (near if off < 0.04 else "")
    judge.that(off <= tol, claim, seen=value, expected=want, likely=likely)


def _aurocs(x: Tensor, truth: Tensor) -> Tensor:
    """Of each column of many numbers: how many of the others are smaller, and how many are not larger, halved."""
    yes, no = x[truth].T.contiguous(), x[~truth].T.contiguous().sort().values
    below = torch.searchsorted(no, yes) + torch.searchsorted(no, yes, right=True)
    return below.double().mean(1) / 2 / no.shape[1]


# 11.1 ------------------------------------------------------------------------------------------
def _pairs(x: Sequence[float], truth: Sequence[bool], tie: float = 0.5) -> float:
    yes, no = ([a for a, t in zip(x, truth, strict=True) if t is side] for side in (True, False))
    wins = [1.0 if a > b else tie if a == b else 0.0 for a, b in itertools.product(yes, no)]
    return sum(wins) / len(wins)


def _case(judge: Judge, n: int, zeros: float, lift: float = 0.8) -> tuple[str, Tensor, Tensor]:
    """Activations with many ties, and truth that goes with them in part; no two thresholds have nearly the same F1."""
    while True:
        truth = judge.rand(n) < 0.35
        x = ((judge.rand(n, high=2.0) + lift * truth + 0.8) * (judge.rand(n) >= zeros) * 4).round() / 4
        scores = sorted(_f1(x, truth, t) for t in set(x.tolist()))
        if 1 < truth.sum() < n and scores[-1] - scores[-2] > 1e-3:
            return f"{n} words, {int((x == 0).sum())} of them with a zero", x, truth


def _by_hand(numbers: str, truth: str) -> tuple[Tensor, Tensor]:
    return torch.tensor([float(x) for x in numbers.split()]), torch.tensor([mark == "y" for mark in truth])


@functools.lru_cache(maxsize=400)
def _wrong_aurocs(x: Tensor, truth: Tensor) -> dict[str, float]:
    a, t, on = x.tolist(), truth.tolist(), x > 0
    n, m, want = sum(t), len(t) - sum(t), _pairs(x.tolist(), truth.tolist())
    untied = sum(p != q for p, q in itertools.product(x[truth].tolist(), x[~truth].tolist()))
    order = x.argsort(descending=True, stable=True)
    precision = truth[order].double().cumsum(0) / torch.arange(1, n + m + 1)
    ranks = x.argsort(stable=True).argsort() + 1, x.unique(return_inverse=True)[1] + 1
    in_order, dense = ((r[truth].sum().item() - n * (n + 1) / 2) / (n * m) for r in ranks)
    larger = "below 1/2 it stays there: this is the larger of a and 1 - a"
    loud = _aurocs(x[on][:, None], truth[on]).item() if 0 < (on & truth).sum() < on.sum() else -1.0
    return {
        "a tie counts one half: here it counts nothing": _pairs(a, t, 0.0),
        "a tie counts one half: here it counts as won": _pairs(a, t, 1.0),
        "true and false are exchanged" if want > 0.5 else larger: 1 - want,
        "this is 2 AUROC - 1: one half is what a latent that knows nothing gets": 2 * want - 1,
        "this is the distance from 1/2": abs(want - 0.5),
        "this is accuracy at the threshold 0: AUROC compares pairs": (on == truth).double().mean().item(),
        "activations were made on or off: AUROC compares their sizes": _pairs(on.double().tolist(), t),
        "each pair is counted, not averaged: divide by the number of pairs": want * n * m,
        "divided by n squared: only pairs of one true and one false word count": want * n * m / (n + m) ** 2,
        "ties are left out of the number of pairs as well": _pairs(a, t, 0.0) * n * m / max(1, untied),
        "equal numbers were ranked in the order in which they stand": in_order,
        "equal numbers take one rank together: they share the mean of the ranks that they take up": dense,
        "ranks begin with 1: here they begin with 0": want - 1 / m,
        "the sum of ranks has n (n + 1) / 2 to be taken away": want + (n + 1) / 2 / m,
        "this is the average precision, the area below another curve": precision[truth[order]].mean().item(),
        "this is the difference of the means": (x[truth].mean() - x[~truth].mean()).item(),
        "compared with the mean of the others: compare with each": (x[truth] > x[~truth].mean()).double().mean().item(),
        "words where the latent is off were left out: they count, too": loud,
    }


@functools.lru_cache(maxsize=40)
def _scored(seed: int) -> list[tuple[str, Tensor, Tensor, float, Slips]]:
    judge = Judge("", "", seed)
    cases = [
        ("by hand", *_by_hand("3 0 2 1.5 3 1 0 1 1 1", "ynyyyyynny")),
        ("a latent that is on where the variable is false", *_by_hand("2 0 1 0 0.5 3", "nynyyn")),
        ("a latent that is never on: it knows nothing, 1/2", torch.zeros(8), torch.arange(8) % 3 == 0),
        *(_case(judge, n, zeros, lift) for lift in (0.8, -0.8) for n, zeros in SIZES),
    ]
    return [(*c, _pairs(c[1].tolist(), c[2].tolist()), functools.partial(_wrong_aurocs, *c[1:])) for c in cases]


@exercise("Scoring a latent")
def auroc(fn: Any, judge: Judge) -> None:
    near = "near, but not it: are all pairs compared, each once, and no thresholds but those that occur?"
    for case, x, truth, want, slips in _scored(judge.generator.initial_seed()):
        _close(judge, judge.call(fn, x, truth), want, f"AUROC, {case}", slips, near=near)


# 11.2 ------------------------------------------------------------------------------------------
def _f1(x: Tensor, truth: Tensor, t: float, strict: bool = False) -> float:
    says = x > t if strict else x >= t
    return 2 * int((says & truth).sum()) / max(1, int(says.sum() + truth.sum()))


def _best(x: Tensor, truth: Tensor, score: Any = _f1, among: Tensor | None = None, tie: int = 1) -> float:
    candidates = sorted(set((x if among is None else among).tolist()))
    return max(candidates, key=lambda t: (score(x, truth, t), tie * t))


def _rates(x: Tensor, truth: Tensor, t: float) -> dict[str, float]:
    says = x >= t
    tpr, fpr = (says[side].double().mean().item() for side in (truth, ~truth))
    precision = truth[says].double().mean().item() if says.any() else 0.0
    return {
        "TPR - FPR": tpr - fpr,
        "accuracy": (says == truth).double().mean().item(),
        "precision": precision,
        "recall": tpr,
    }


@functools.lru_cache(maxsize=400)
def _wrong_f1s(x_a: Tensor, t_a: Tensor, x_b: Tensor, t_b: Tensor) -> dict[str, float]:
    t, values = _best(x_a, t_a), x_a.unique()
    want, there, middles = _f1(x_b, t_b, t), _rates(x_b, t_b, t), (values[1:] + values[:-1]) / 2
    above = _best(x_a, t_a, lambda x, truth, s: _f1(x, truth, s, strict=True))
    between = _f1(x_b, t_b, _best(x_a, t_a, among=middles))
    found = {"of equally good thresholds the largest counts": _f1(x_b, t_b, _best(x_a, t_a, tie=-1))}
    found |= {f"this is the {name} there": there[name] for name in there}
    for name, tie in itertools.product(there, (1, -1)):
        chosen = _best(x_a, t_a, lambda x, truth, s, name=name: _rates(x, truth, s)[name], tie=tie)
        found[f"the threshold is that of the best {name}, not of the best F1{' ' * (tie < 0)}"] = _f1(x_b, t_b, chosen)
    return found | {
        "judged on the half on which the threshold was chosen": _f1(x_a, t_a, t),
        "the threshold was chosen on the half on which it is judged": _f1(x_b, t_b, _best(x_b, t_b)),
        "the halves are exchanged": _f1(x_a, t_a, _best(x_b, t_b)),
        "candidates are the activations of the first half, not of the other": _f1(x_b, t_b, _best(x_a, t_a, among=x_b)),
        "`at least t` is >=, not >": _f1(x_b, t_b, t, strict=True),
        "`at least t` is >=, not >, in choosing and in judging": _f1(x_b, t_b, above, strict=True),
        "0 is a candidate as well, where it occurs": _f1(x_b, t_b, _best(x_a, t_a, among=x_a[x_a > 0])),
        "a threshold half-way between two activations: candidates are those that occur": between,
        "the threshold is 0: on or off": _f1(x_b, t_b, 0.0, strict=True),
        "the threshold itself was returned": t,
        "without the 2: F1 is 2 TP / (2 TP + FP + FN)": want / 2,
        "TP / (TP + FP + FN): both have a 2": want / (2 - want),
        "this is the mean of precision and recall": (there["precision"] + there["recall"]) / 2,
    }


# Mistakes lead to different numbers here; in the third two thresholds are equally good, in the fourth it is 0.
BY_HAND = (
    ("1 2 0 4 0 2.5 0 0 1 3 0", "nnnyyyynnyn", "3 0 4 1 0 0 1.5 2 2 1 2", "nyynnnyynny"),
    ("2.5 3 4 3 2 0 3 3 2.5", "nynnynnny", "2 0.5 1.5 0 2 2.5 0 2 0", "nynnyyynn"),
    ("0.5 0 0 2 1 0 3 0", "nyyynnyn", "0 2 3 1 1.5 0 1.5 2", "yyynynyn"),
    ("2 2 0 0 3 3 3", "ynyynnn", "0 0.5 0.5 1.5 0.5 0 2", "yynynny"),
    ("3 2 2 0.5 3 2 0.5 0", "yyynynyn", "2 1 3 0 1.5 0.5 1 0", "yyyyynnn"),
)


@functools.lru_cache(maxsize=40)
def _halves(seed: int) -> list[tuple[str, tuple[Tensor, ...], float, Slips]]:
    cases, judge = [("by hand", *_by_hand(*half[:2]), *_by_hand(*half[2:])) for half in BY_HAND], Judge("", "", seed)
    cases += [(*_case(judge, n, zeros), *_case(judge, n, zeros)[1:]) for n, zeros in SIZES]
    return [(c[0], c[1:], _f1(*c[3:], _best(*c[1:3])), functools.partial(_wrong_f1s, *c[1:])) for c in cases]


@exercise("Scoring a latent")
def f1_elsewhere(fn: Any, judge: Judge) -> None:
    near = "near, but not it: is each activation of the first half tried as a threshold?"
    for case, given, want, slips in _halves(judge.generator.initial_seed()):
        _close(judge, judge.call(fn, *given), want, f"F1 on the other half, {case}", slips, near=near)


# 11.3 ------------------------------------------------------------------------------------------
def _wrong_changes(x: Tensor, f: Tensor, W: Tensor, latent: int, value: float, where: Tensor) -> Named:
    step, row, on, own = value - f[..., [latent]], W[latent], where[..., None], f[..., [latent]]
    changed, alone, unit = f.clone(), torch.zeros_like(f), F.normalize(row, dim=0)
    parts = [x + on * (value - x @ along)[..., None] * along for along in (row, unit)]
    changed[..., latent] = alone[..., latent] = value
    wrong = {
        "the first row's `where` was taken for all": x + on[:1] * step * row,
        "this is the changed reconstruction: the error, x minus x_hat, is to stay": torch.where(on, changed @ W, x),
        "the error is to stay: elsewhere, too": torch.where(on, changed @ W, f @ W),
        "the error is to stay, and elsewhere x": changed @ W,
        "f of the latent was not taken away: the change is value - f": x + on * value * row,
        "the sign of the change is wrong: value - f": x - on * step * row,
        "only where the latent was on: one that is off is set to `value` as well": x + on * (own > 0) * step * row,
        "the direction was normalised: take the row of W_dec as it is": x + on * step * unit,
        "x's own part along the direction was taken away: take f of the latent": parts[0],
        "x's own part along the direction was taken away, and it has length 1": parts[1],
        "changed everywhere: only where `where` is true": x + step * row,
        "changed where `where` is false": x + ~on * step * row,
        "the other latents were switched off": x + on * ((alone - f) @ W),
        "this is the change: add it to x": on * step * row,
        "zero where `where` is false: x is to stay there": on * (x + step * row),
        "nothing was changed": x,
        "the latent was ablated: it is to be set to `value`": x - on * own * row,
        "multiplied by value: it is to be set to `value`": x + on * (value - 1) * own * row,
    }
    if len(set(W.shape)) == 1:
        axis = "an axis is missing, as in where[..., None]: positions were taken for dimensions"
        wrong["a column of W_dec was taken: a latent's direction is a row"] = x + on * step * W[:, latent]
        wrong["these are latents: return activations"] = torch.where(on, changed, f)
        wide = step[..., 0] * row
        wrong |= {axis: x + step * row * where, f"{axis} ": x + wide * on, f"{axis}  ": x + wide * where}
    return wrong


@exercise("What a latent does")
def with_latent(fn: Any, judge: Judge) -> None:
    judge.that(callable(fn), "a function is expected", seen=fn)
    for batch, pos, d, m, value in ((1, 5, 5, 5, 1.5), (2, 3, 4, 6, 0.0), (3, 2, 5, 7, -1.0)):
        x, W_dec = judge.randn(batch, pos, d), judge.randn(m, d)  # rows of any length
        f = (judge.randn(batch, pos, m) + 0.3).relu()
        where = judge.rand(batch, pos) < 0.5
        where[0, :2], where[-1, -1] = torch.tensor([True, True]), False
        latent = int(torch.randint(m, (), generator=judge.generator))
        f[0, :2, latent], f[-1, -1, latent] = torch.tensor([0.0, 0.7]), 0.9
        want, given = x.clone(), [t.clone() for t in (x, f, W_dec, where)]
        for i, j in where.nonzero().tolist():
            want[i, j] += (value - f[i, j, latent]) * W_dec[latent]
        got = judge.call(functools.partial(fn, *given[:3], latent, value, given[3]))  # without copies
        for name, old, new in zip(("x", "f", "W_dec", "where"), (x, f, W_dec, where), given, strict=True):
            likely = f"work on a copy, {name}.clone(): others still need {name} as it was"
            seen, claim = f"{name} was changed", "the arguments stay as they are"
            judge.that(torch.equal(old, new), claim, seen=seen, likely=likely)
        got = _shaped(judge, got, (batch, pos, d), {(batch, pos, m): "these are latents: return activations"})
        wrong = functools.partial(_wrong_changes, x, f, W_dec, latent, value, where)
        _agree(judge, got, want, f"latent {latent} of {m} set to {value:g}", wrong)


# 11.4 ------------------------------------------------------------------------------------------
class _Largest(TorchFunctionMode):
    """Keeps how many entries the largest tensor of decimals has that is made."""

    entries = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor) and x.is_floating_point()]
        self.entries = max([self.entries, *made])
        return out


def _in_small_batches(fn: Any, judge: Judge) -> None:
    """What a batch has to do with others, and with the generator."""
    shards, generator, size = [torch.arange(40.0)[:, None], torch.arange(40.0, 100.0)[:, None]], judge.generator, 50

    def batch(generator: torch.Generator) -> Tensor:
        got = judge.call(fn, [shard.clone() for shard in shards], size, generator)
        return _shaped(judge, got, (size, 1), {(1, size): "transposed: rows are samples", (size,): KEEP}, "the batch")

    a, b, c = (batch(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    likely = "pass generator=generator to every random function; numpy's and Python's own do not know it"
    judge.that(torch.equal(a, b), "the same generator gives the same batch", likely=likely)
    likely = "a seed of your own is set, or the order is fixed"
    judge.that(not torch.equal(a, c), "another generator gives another batch", likely=likely)
    many = torch.stack([batch(generator) for _ in range(20)])[..., 0]
    likely = "the generator is set back to its seed: take it as it comes"
    judge.that((many != many[0]).any(), "the next call gives another batch", likely=likely)
    repeats = [size - len(row.unique()) for row in many]
    likely = "without replacement, as by torch.randperm, no sample comes twice in a batch: here it may"
    judge.that(max(repeats) > 0, "samples are drawn with replacement", seen="batches without repeats", likely=likely)
    judge.that(min(repeats) < size - 1, "a batch holds many samples", seen="one, over and over", likely="draw `size`")
    share, claim = (many < 40).double().sum(1), "how many samples a shard gives is left to chance"
    ratio = float(share.var()) / (size * 0.4 * 0.6)
    seen = f"numbers of samples from the first of two shards: {share[:6].tolist()}, ..."
    likely = "a fixed number for each shard: draw each sample by itself, from all"
    reasons = {"only one of the shards is drawn from": len(share.unique()) == 1 and share[0] in (0, size), likely: True}
    judge.that(ratio > 0.1, claim, seen=seen, likely=_first(reasons))
    likely = "a whole batch comes from one shard: draw each sample by itself, from all"
    judge.that(ratio < 4, claim, seen=seen, likely=likely)


def _in_pieces(fn: Any, judge: Judge) -> None:
    """Thirty shards, whose samples must not all come to lie in one tensor or array."""
    lengths, d = torch.randint(40, 60, (30,), generator=judge.generator).tolist(), 100
    shards, made = [judge.randn(n, d) for n in lengths], _Largest()
    with made:
        judge.call(fn, shards, 40, judge.generator)  # what is imported on the way is imported now
        tracemalloc.start()
        try:
            judge.call(fn, shards, 40, judge.generator)
            arrays = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    whole, likely = sum(lengths) * d, "find out in which shard a row lies, and at which place, and take it from there"
    ok, seen = made.entries < whole and arrays < 4 * whole, "the rows of all 30 shards at once, for a batch of 40"
    judge.that(ok, "the shards are not put together into one tensor", seen=seen, likely=likely)


@exercise("Harvest")
def draw(fn: Any, judge: Judge) -> None:
    _in_small_batches(fn, judge)
    _in_pieces(fn, judge)
    for lengths, d in (([2, 20, 3], 2), ([6], 1), ([1, 1, 10, 3], 3)):
        total, each = sum(lengths), 200
        ids, n = torch.arange(total, dtype=torch.float32), each * total
        shards = list(torch.stack([ids + 1000 * k for k in range(d)], dim=1).split(lengths))
        got = judge.call(fn, [shard.clone() for shard in shards], n, judge.generator)
        got = _shaped(judge, got, (n, d), {(d, n): "transposed: rows are samples", (n,): KEEP}, "the batch")
        which, likely = got[:, 0], "whole rows are drawn, all dimensions of one sample"
        ok = set(which.tolist()) <= set(range(total)) and torch.equal(got, which[:, None] + 1000 * torch.arange(d))
        judge.that(ok, "every row is a sample of some shard", likely=likely)
        counts = torch.bincount(which.long(), minlength=total).double()
        shard = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[which.long()]
        by_shard = torch.bincount(shard, minlength=len(lengths)).double() / n
        fair = torch.tensor(lengths, dtype=torch.float64) / total
        never, last = set((counts == 0).nonzero()[:, 0].tolist()), {end - 1 for end in itertools.accumulate(lengths)}
        first = {(end + 1) % total for end in last}
        alike = bool((by_shard - 1 / len(lengths)).abs().max() < 0.03)
        reasons = {
            "a shard was drawn first, and then a row: samples of short shards come too often": alike,
            "the last row of a shard never comes: are the ends counted right?": bool(never) and never <= last,
            "the first row of a shard never comes: are the ends counted right?": bool(never) and never <= first,
            "the last shard is never reached": float(by_shard[-1]) == 0.0,
        }
        claim, likely = f"shards of {lengths} samples get their share of a large batch", _first(reasons)
        ok = bool(((by_shard - fair).abs() <= 6 * (fair * (1 - fair) / n).sqrt()).all())
        judge.that(ok, claim, seen=by_shard.round(decimals=3), expected=fair.round(decimals=3), likely=likely)
        judge.that(not never, "every sample can be drawn", seen=f"{len(never)} of {total} never come", likely=likely)
        off = (counts / each - 1).abs()
        half = "the first and last row of a shard come half as often: rounding gives them half a place"
        half = half if int(counts.argmin()) in first | last else ""
        seen = f"one comes {counts[off.argmax()] / each:.2f} times as often as it should"
        judge.that(off.max() < 0.45, "every sample of a shard is equally likely", seen=seen, likely=half)
        rises, stays = (same.double().mean().item() for same in (which[1:] >= which[:-1], shard[1:] == shard[:-1]))
        claim, likely = "samples come in random order", "draw each by itself: nothing sorted, no run of neighbours"
        judge.that(rises < 0.7, claim, seen=f"{rises:.0%} are followed by themselves or a later one", likely=likely)
        likely = "rows stand in the order of their shards: put each where its number was drawn"
        judge.that(stays < fair.square().sum() + 0.05, claim, seen="the next row is of its shard", likely=likely)


# 11.5 ------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=40)
def _splices(seed: int) -> list[tuple[Transformer, str, Any, Tensor, Tensor, float, Slips]]:
    """Sites of the course model, a made-up reconstruction, what replaces it, and the share recovered."""
    generator = torch.Generator().manual_seed(seed)
    model, rows = load("tinyworld"), tinyworld.batch(random.Random(seed), tinyworld.TOKENIZER, 2)[:, :16]
    found: list[tuple[Transformer, str, Any, Tensor, Tensor, float, Slips]] = []
    for at, scale in (("0.hook_mlp_out", 0.8), ("0.hook_resid_post", -2.0)):  # this one is worse than zero
        M = scale * torch.eye(96) + 0.12 * torch.randn(96, 96, generator=generator)
        shift, instead = torch.randn(2, 96, generator=generator) * torch.tensor([[0.2], [float(scale == 0.8)]])

        site, replaced = f"blocks.{at}", instead.expand_as

        def sae(x: Tensor, M: Tensor = M, shift: Tensor = shift) -> Tensor:
            return x @ M + shift

        @functools.cache
        def log_p(by: Any = None, skip: int = 1, site: str = site) -> Tensor:
            def edit(name: str, x: Tensor) -> Tensor:
                return torch.cat([x[:, :skip], by(x[:, skip:].float())], 1) if by and name == site else x

            return _run(model, rows, edit).log_softmax(-1)

        def share(loss: Any, a: Any = sae, b: Any = replaced, at: Any = (1, 1), log_p: Any = log_p) -> float:
            clean, spliced, ablated = (loss(x) for x in (log_p(), log_p(a, at[0]), log_p(b, at[1])))
            return float((ablated - spliced) / (ablated - clean))

        def slips(share: Any = share, log_p: Any = log_p, sae: Any = sae, replaced: Any = replaced) -> dict[str, float]:
            clean, spliced, ablated = (float(_loss(rows, x)) for x in (log_p(), log_p(sae), log_p(replaced)))
            loss, want = functools.partial(_loss, rows), (ablated - spliced) / (ablated - clean)
            return {
                "this is 1 minus the share: the share that is lost": 1 - want,
                "a share may be below 0, where the SAE does more harm than the ablation: leave it so": max(0.0, want),
                "a share may be below 0: this is its size": abs(want),
                "this is a share of the ablated loss: divide by what the ablation costs": (ablated - spliced) / ablated,
                "this is a share of the clean loss: divide by what the ablation costs": (ablated - spliced) / clean,
                "this is the clean loss as a share of that with the SAE": clean / spliced,
                "position 0 was replaced as well": share(loss, at=(0, 0)),
                "position 0 was replaced by the SAE as well": share(loss, at=(0, 1)),
                "position 0 was ablated as well": share(loss, at=(1, 0)),
                "zero stood in for `instead`": share(loss, b=lambda x: 0 * x),
                "the reconstruction was added: it takes the activation's place": share(loss, lambda x: x + sae(x)),
                "this is the loss of the last prediction only": share(lambda x: _loss(rows[:, -2:], x[:, -2:])),
                "each token's own logits were taken: they predict the next one": share(lambda x: _loss(rows, x, 0)),
                "logits and tokens are shifted the wrong way": share(lambda x: _loss(rows, x, -1)),
                "this is perplexity, exp of the loss": share(lambda x: _loss(rows, x).exp()),
                "a difference of losses: divide by what the ablation costs": ablated - spliced,
                "the loss with the SAE": spliced,
                "clean over ablated: compare with what the SAE gives": (ablated - spliced) / (spliced - clean),
            }

        found.append((model, site, sae, rows, instead, share(functools.partial(_loss, rows)), functools.cache(slips)))
    return found


def _loss(rows: Tensor, log_p: Tensor, ahead: int = 1) -> Tensor:
    """The mean loss, if the logits at a place predict the word so far ahead."""
    places = torch.arange(max(0, -ahead), rows.shape[1] - max(0, ahead))
    return -log_p[:, places].gather(-1, rows[:, places + ahead, None]).mean()


@exercise("Train, and say how good it is")
def recovered(fn: Any, judge: Judge) -> None:
    for model, site, sae, rows, instead, want, slips in _splices(judge.generator.initial_seed()):
        got, left = judge.call(fn, model, site, sae, rows, instead), sorted(model.attached)
        model.attached.clear()
        judge.that(not left, "no hook stays attached", seen=left, likely="`with hooked(...)` takes them off again")
        _close(judge, got, want, f"the share recovered at {site}", slips, tol=2e-4)


# 11.6 ------------------------------------------------------------------------------------------
@exercise("Splitting")
def conjunctions(fn: Any, judge: Judge) -> None:
    for n_words, n_roles, d, n_pairs in ((3, 2, 7, 4), (5, 4, 9, 6), (4, 4, 8, 1)):
        basis = torch.linalg.qr(judge.randn(d, d))[0]
        words, roles = basis[:n_words], basis[n_words : n_words + n_roles]
        every = [divmod(k, n_roles) for k in torch.randperm(n_words * n_roles, generator=judge.generator).tolist()]
        pairs = every[:n_pairs]
        answer = judge.call(fn, words, roles, list(pairs))
        W = _matrices(judge, answer, {"W_enc": (d, n_pairs), "b_enc": (n_pairs,)})
        inputs: list[tuple[str, Tensor, Any]] = [("nothing", torch.zeros(d), (None, None))]
        inputs += [(f"word {i} and role {j}", words[i] + roles[j], (i, j)) for i, j in every]
        inputs += [(f"word {i} alone", words[i], (i, None)) for i in range(n_words)]
        inputs += [(f"role {j} alone", roles[j], (None, j)) for j in range(n_roles)]
        f = torch.relu(torch.stack([x for _, x, _ in inputs]).double() @ W["W_enc"].double() + W["b_enc"].double())
        own = f[1 : n_pairs + 1]
        moved = own.diagonal().min() < 0.001 < 0.999 < own.amax(1).min() and len(own.argmax(1).unique()) == n_pairs
        for (what, _, (i, j)), row in zip(inputs, f.tolist(), strict=True):
            for pair, got in zip(pairs, row, strict=True):
                want, half = float(pair == (i, j)), pair != (i, j) and (pair[0] == i or pair[1] == j)
                reasons = {
                    "latents stand in another order than `pairs`": moved,
                    "on without its word and its role: a bias above 0?": want == 0 and not half and got > 1e-3,
                    "the latent is on for one of the two as well: a bias has to hold it down": half and got > 1e-3,
                    "the bias holds it down too much, or the pair is another one's": want == 1 and got < 1e-3,
                    "both together reach more than 1: scale and bias are to bring that to 1": want == 1 and got > 1.001,
                    "both together reach less than 1: scale and bias are to bring that to 1": want == 1,
                }
                claim = f"latent of word {pair[0]} and role {pair[1]} at {what}"
                judge.that(abs(got - want) < 1e-3, claim, seen=got, expected=want, likely=_first(reasons))


# 11.7 ------------------------------------------------------------------------------------------
def _planted(judge: Judge, n: int, m: int) -> tuple[Tensor, ...]:
    """Latents of which one is best where it counts, and others for whoever chooses in another way."""
    asked, first = judge.rand(n) < 0.3, torch.arange(n) < n // 2
    truth = asked & (judge.rand(n) < 0.3)
    f = judge.rand(n, m) * (judge.rand(n, m) < 0.4)
    good, steady, late, anywhere, against, loud = torch.randperm(m, generator=judge.generator)[:6].tolist()

    def lifted(by: Any) -> Tensor:
        return judge.rand(n) + by * truth + ~asked * judge.rand(n, low=1.0, high=2.0)

    f[:, good], f[:, steady] = lifted(torch.where(first, 0.8, 0.1)), lifted(0.6)  # best on the first half; on both
    f[:, late] = torch.where(first, judge.rand(n), lifted(2))
    f[:, anywhere] = asked * judge.rand(n, low=1.0, high=2.0)
    f[:, against] = lifted(-0.95) + ~asked
    f[:, loud] = 30 * lifted(0.3)
    return f, truth, asked, first


@exercise("Scoring a latent")
def best_latent(fn: Any, judge: Judge) -> None:
    for n, m in ((1600, 9), (2000, 20)):
        f, truth, asked, first = _planted(judge, n, m)

        def scores(where: Tensor, f: Tensor = f, truth: Tensor = truth) -> Tensor:
            return _aurocs(f[where], truth[where])

        choose, check, every = asked & first, asked & ~first, torch.ones(n, dtype=torch.bool)
        chosen, judged = scores(choose), scores(check)
        best, means = int(chosen.argmax()), f[choose & truth].mean(0)
        pair = judge.call(fn, f, truth, asked, first)
        pair = pair.tolist() if isinstance(pair, Tensor | np.ndarray) else pair
        judge.that(isinstance(pair, tuple | list) and len(pair) == 2, "a latent and its AUROC are returned", seen=pair)
        latent, value = (float(_number(judge, x, w)) for x, w in zip(pair, ("the latent", "the AUROC"), strict=True))
        turned, silent = value == int(value) and 0 < latent < 1, f * asked[:, None]
        judge.that(not turned, "a latent and its AUROC, in this order", seen=pair, likely="they are exchanged")
        rules = {
            "chosen on the second half, where it is to be judged": judged,
            "chosen on both halves: the same words must not choose and judge": scores(asked),
            "chosen among all words, also those at which the variable is not asked": scores(first),
            "its AUROC is far below 1/2: the largest is the best, not the one farthest from 1/2": -chosen,
            "chosen by its mean where the variable is true: take the AUROC": means,
            "words that are not asked are to be left out, not set to zero": scores(every, silent),
        }
        likely = _first({text: latent == int(rule.argmax()) for text, rule in rules.items()})
        claim = "the latent is the best of the first half, among words that are asked"
        judge.that(latent == best, claim, seen=f"{latent:g}", expected=str(best), likely=likely)
        slips: dict[str, Any] = {
            "judged on the half on which it was chosen": chosen[best],
            "judged on both halves": scores(asked)[best],
            "judged on all words of the second half, also those that are not asked": scores(~first)[best],
            "judged on all words": scores(every)[best],
            "words that are not asked are to be left out, not set to zero": scores(~first, silent)[best],
            "this is the largest AUROC of the second half: that of another latent": judged.max(),
            "this is the mean of both halves": (chosen[best] + judged[best]) / 2,
            "true and false are exchanged": 1 - judged[best],
        }
        _close(judge, value, float(judged[best]), "its AUROC is that on the second half", slips.copy)


# 11.8 ------------------------------------------------------------------------------------------
@functools.cache
def _of_name(role: str, n: int = 20) -> tuple[Tensor, Tensor]:
    """The notebook's sentences: rows of equal length up to the word before the answer; and the answers."""
    rng, found = random.Random(role), dict[int, list[tuple[Tensor, int]]]()
    while True:
        s = tinyworld.indirect_object(rng)
        if (s.answer if role == "IO" else s.words[s.roles["S2"]]) == "Laura":
            row = tinyworld.TOKENIZER.encode(s.prompt())[0]
            same = found.setdefault(len(row), [])
            same.append((row, tinyworld.TOKENIZER.id(s.answer or "")))
            if len(same) == n:
                return torch.stack([row for row, _ in same]), torch.tensor([answer for _, answer in same])


@functools.lru_cache(maxsize=2)
def _at_ends(seed: int) -> tuple[Tensor, list[str]]:
    """Streams before an indirect object comes, from the corpus's own sentences, and who comes."""
    rng, by_length, streams, names = random.Random("check of 11.8"), dict[int, list[Any]](), [], list[str]()
    for s in (tinyworld.indirect_object(rng) for _ in range(1000)):
        by_length.setdefault(s.roles["END"], []).append(s)
    for found in by_length.values():
        tokens = torch.cat([tinyworld.TOKENIZER.encode(s.prompt()) for s in found])
        streams.append(run_with_cache(load("tinyworld", seed=seed), tokens, SITE)[1][SITE][:, -1])
        names += [s.answer for s in found]
    return torch.cat(streams), names


def _top(x: Tensor, sae: SAE) -> Tensor:
    """A TopK SAE's latents, from its formula."""
    pre = ((x.float() - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    return torch.where(pre >= pre.topk(sae.k or 1).values[..., -1:], pre, 0.0)


@functools.cache
def _ranking(name: str = "Laura", model: int = 1, sae: int = 1) -> list[tuple[float, int]]:
    f, truth = _top(_at_ends(model)[0], load_sae("resid", seed=sae)), [n == name for n in _at_ends(model)[1]]
    return sorted(((a, i) for i, a in enumerate(_aurocs(f, torch.tensor(truth)).tolist())), reverse=True)


@functools.lru_cache(maxsize=40)
def _logits(role: str, latent: int, *, error: bool = True, everywhere: bool = False) -> Tensor:
    """Logits at the end, [sentence, word], when the latent is off there; as they are for latent -1."""
    model, sae = load("tinyworld", seed=1), load_sae("resid", seed=1)

    def edit(name: str, x: Tensor) -> Tensor:
        if name != SITE or latent < 0:
            return x
        f, at = _top(x, sae), 1 if everywhere else -1
        off = f * (torch.arange(sae.d_sae) != latent)
        new = x - f[..., [latent]] * sae.W_dec[latent] if error else (off @ sae.W_dec + sae.b_dec).double()
        return torch.cat([x[:, :at], new[:, at:]], 1)

    return _run(model, _of_name(role)[0], edit)[:, -1]


def _changed(role: str, latent: int, of: Any = lambda x: x.log_softmax(-1), **how: bool) -> float:
    """The mean change of Laura's log probability at the end, or of what else is made of logits."""
    after, before = (of(x)[:, LAURA] for x in (_logits(role, latent, **how), _logits(role, -1)))
    return (after - before).mean().item()


def _wrong_changes_of(role: str, latent: int, want: float) -> dict[str, float]:
    answers = _of_name(role)[1]
    after, before = (_logits(role, i).log_softmax(-1) for i in (latent, -1))
    return {
        "the sign: after minus before": -want,
        "nothing was changed: is the hook at the SAE's site, and at the last position?": 0.0,
        "the reconstruction took the activation's place: its error is to stay": _changed(role, latent, error=False),
        "the latent was set to zero at all positions, not at the last only": _changed(role, latent, everywhere=True),
        "these are the other sentences": _changed("S2" if role == "IO" else "IO", latent),
        "this is the probability: its logarithm is asked for": _changed(role, latent, lambda x: x.softmax(-1)),
        "this is the logit: the log probability is asked for": _changed(role, latent, lambda x: x),
        "this is the sum over sentences: take the mean": len(answers) * want,
        "this is the median: take the mean": (after - before)[:, LAURA].median().item(),
        "this is log P afterwards: take away what it was before": want + before[:, LAURA].mean().item(),
        "this is log P(the answer), not log P(Laura)": (after - before).gather(1, answers[:, None]).mean().item(),
    }


@exercise("What a latent does")
def laura(answer: Any, judge: Judge) -> None:
    given, best = _numbers(judge, answer, "latent", "own", "as_giver"), _ranking()[0]
    if (latent := given["latent"]) != best[1]:
        score = next((f", whose AUROC is {score:.2f}" for score, i in _ranking() if i == latent), "")
        others = {name for name in _at_ends(1)[1] if name != "Laura" and _ranking(name)[0][1] == latent}
        reasons = {
            "an index is asked for": latent != int(latent),
            f"that is {'/'.join(sorted(others))}'s: is `truth` the row of group.names.index('Laura')?": bool(others),
            "that is course model 0 with its own dictionary": latent == _ranking(model=0, sae=0)[0][1],
            "that is the dictionary of course model 0: load_sae('resid', seed=1)": latent == _ranking(sae=0)[0][1],
            "below 1/2: the largest AUROC is the best": latent in [i for score, i in _ranking() if score < 0.499],
            "is it course model 1 with load_sae('resid', seed=1), and the highest AUROC among the group's words?": True,
        }
        seen, most = f"{latent:g}{score}", f"an AUROC of {best[0]:.2f}"
        judge.fail("the latent that tells best that Laura is next", seen=seen, expected=most, likely=_first(reasons))
    for key, role in (("own", "IO"), ("as_giver", "S2")):
        want = _changed(role, best[1])
        slips = functools.partial(_wrong_changes_of, role, best[1], want)
        _close(judge, given[key], want, f"{key}: the mean change of log P(Laura)", slips, tol=0.01)


# 11.9 ------------------------------------------------------------------------------------------
KINDS = {"trained": "resid", "untrained": "untrained"}


@functools.cache
def _asked(kind: str) -> dict[str, tuple[Tensor, features.Group]]:
    """The model's activations at the notebook's words, and what is true there; scores are worked out here."""
    rows, groups = features.labelled_rows(1400, most=4000, least=6)
    model, short = load("tinyworld") if kind == "trained" else untrained(0), {"word": "word", "indirect object": "name"}
    x = torch.cat([run_with_cache(model, part, SITE)[1][SITE].flatten(0, 1) for part in rows.split(200)])
    return {short[g.what]: (x[g.where], g) for g in groups if g.what in short}


@functools.cache
def _scores(kind: str, what: str, dictionary: str = "", early: bool = True) -> dict[str, Tensor]:
    """The best latents' scores, with latent and threshold chosen in one half of the rows: here, and elsewhere."""
    (x, g), found = _asked(kind)[what], []
    f, half = _top(x, load_sae(KINDS[dictionary or kind])), (g.where < 700 * tinyworld.N_CTX) == early
    a, b = f[half], f[~half]
    for here, there in zip(g.truth[:, half], g.truth[:, ~half], strict=True):
        best = int(_aurocs(a, here).argmax())
        x, t = a[:, best], a[:, best].unique().flip(0)  # of equally good thresholds the largest
        says = x >= t[:, None]
        at = t[(2 * (says & here).sum(1) / (says.sum(1) + here.sum())).argmax()].item()
        found.append([_f1(x, here, at), _f1(b[:, best], there, at), _aurocs(b[:, [best]], there).item()])
    return dict(zip(("here", "F1", "AUROC"), torch.tensor(found).T, strict=True))


def _wrong_medians(kind: str, what: str) -> Named:
    own, late = _scores(kind, what), _scores(kind, what, early=False)
    other, name = "untrained" if kind == "trained" else "trained", "name" if what == "word" else "word"
    return {
        "trained and untrained are exchanged, or both have one model or one dictionary": _scores(other, what)[
            "F1"
        ].median(),
        "word and name are exchanged": _scores(kind, name)["F1"].median(),
        "the dictionary is that of the other model": _scores(kind, what, other)["F1"].median(),
        "this is the mean: the median over variables is asked for": own["F1"].mean(),
        "this is the largest F1: the median is asked for": own["F1"].max(),
        "this is the smallest F1: the median is asked for": own["F1"].min(),
        "this is the AUROC: the median of `score_units(...).f1` is asked for": own["AUROC"].median(),
        "this is the mean AUROC: the median of `score_units(...).f1` is asked for": own["AUROC"].mean(),
        "judged on the first half, where latent and threshold were chosen": own["here"].median(),
        "latent and threshold were chosen on the second half, where they are judged": late["here"].median(),
        "chosen on the second half and judged on the first": late["F1"].median(),
    }


@exercise("A model that never learned")
def learned(answer: Any, judge: Judge) -> None:
    names = [f"{kind} {what}" for kind in KINDS for what in ("word", "name")]
    for name, value in _numbers(judge, answer, *names).items():
        kind, what = name.split()
        want, likely = float(_scores(kind, what)["F1"].median()), "an F1 lies between 0 and 1"
        if not (ok := abs(value - want) <= 0.03) and 0 <= value <= 1:
            likely = "activations at SAES['resid'] of the right model, through its own dictionary"
            wrong = [text for text, slip in _wrong_medians(kind, what).items() if abs(value - float(slip)) < 0.006]
            likely = "; or ".join(wrong) or likely
        judge.that(ok, f"{name}: the median F1", seen=value, expected=round(want, 2), likely=likely)


# 11.10 -----------------------------------------------------------------------------------------

STATEMENTS = {
    "a": (False, "zero and mean ablation are two different losses: the share depends on which"),
    "b": (True, "where it is rare, a latent on for ten times as many words still ranks nearly all others right"),
    "c": (False, "the top examples are the tail of its range: lower down it can be on for something else"),
    "d": (False, "subjects of facts are read well and have hardly any latent: a dictionary explains variance"),
    "e": (True, "the error is part of what the model computes with: replace it, and two things have changed"),
    "f": (False, "the dictionary of an untrained model has more of them: words, which are in its embeddings"),
    "g": (True, "that is what it shows; not that the model uses this latent, nor that weaker steering would do"),
    "h": (True, "the best of 768 guesses looks good where it was chosen"),
    "i": (False, "dictionaries of other sizes have other latents: the number is one that you choose"),
}


@exercise("What it does not show")
def verdicts(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)
