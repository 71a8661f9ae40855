"""Checks of chapter 10's exercises: worked by hand, an optimum from its own equations, transplants in float64."""

import functools
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp_edu import tinyworld
from interp_edu.checks.activation_patching import (
    ALL,
    Named,
    _activations,
    _agree,
    _ask,
    _patched,
    _plain,
    _run,
    _Task,
)
from interp_edu.checks.attention_heads import _first, _number, _shaped
from interp_edu.checks.core import Judge, _same, exercise
from interp_edu.checks.induction_heads import _numbers
from interp_edu.checks.transformer import _matrices, _model, _tokens
from interp_edu.pretrained import load

# 10.1 ------------------------------------------------------------------------------------------


def _of_effects(effects: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over prompts and half the interval's width, from sums."""
    n, mean = len(effects), effects.double().sum(0) / len(effects)
    variance = (effects.double() - mean).square().sum(0) / (n - 1)
    return mean, 1.96 * (variance / n).sqrt()


def _wrong_means(corrupted: Tensor, restored: Tensor) -> Named:
    mean = (effects := restored - corrupted[:, None, None]).mean(0)
    found = {
        "this is corrupted minus restored: an effect is what restoring adds": -mean,
        "the corrupted run was not taken away: this is the mean of `restored`": restored.mean(0),
        "this is the mean and interval in the other order: the effect comes first": _of_effects(effects)[1],
        "the sign is lost: restoring may do harm": effects.abs().mean(0),
        "divided by what is missing to 1: the plain difference is asked for": mean / (1 - corrupted.mean()),
        "divided by the corrupted probability: the plain difference is asked for": mean / corrupted.mean(),
        "a sum over prompts: take the mean": effects.sum(0),
        "this is a median: take the mean over prompts": effects.median(0).values,
    }
    prompts, layers, pos = restored.shape
    wrong = "prompt by prompt: `corrupted` met the axis of "
    if prompts == pos:
        found[f"{wrong}positions; corrupted[:, None, None] has a number for each prompt"] = (restored - corrupted).mean(
            0
        )
    if prompts == layers:
        found[f"{wrong}layers; corrupted[:, None, None] has a number for each prompt"] = (
            restored - corrupted[:, None]
        ).mean(0)
    return found


def _wrong_widths(corrupted: Tensor, restored: Tensor) -> Named:
    n, effects = len(corrupted), restored - corrupted[:, None, None]
    half, s = _of_effects(effects)[1], effects.std(0)
    apart = torch.stack([_of_effects(restored)[1], _of_effects(corrupted)[1].expand_as(half)])
    separate = "these are the intervals of two separate means: take that of the differences, prompt by prompt"
    return {
        separate: apart.square().sum(0).sqrt(),
        f"{separate} (and their sum)": apart.sum(0),
        "this is the interval of `restored` alone: take that of the differences, prompt by prompt": apart[0],
        "s was taken with n: torch.std divides by n - 1 unless told otherwise, numpy's std by n": half
        * math.sqrt((n - 1) / n),
        "s is not divided by the root of n: this is how far prompts spread, not the mean": 1.96 * s,
        "s is divided by n, not by its square root": 1.96 * s / n,
        "divided by the root of n - 1: s has that already, so here it is n": 1.96 * s / math.sqrt(n - 1),
        "this is the full width: half of it is asked for": 2 * half,
        "this is the standard error: 1.96 is forgotten": half / 1.96,
        "this is s itself: 1.96 and the root of n are forgotten": s,
        "this is s squared, a variance: take its root": 1.96 * s.square() / math.sqrt(n),
        "this is a variance: take its root": 1.96 * s.square() / n,
        "n counts layers or positions, too: take the number of prompts": 1.96 * s / math.sqrt(effects.numel()),
        "this is the interval's upper end: half of its width is asked for": effects.mean(0) + half,
        "this is the interval's lower end: half of its width is asked for": effects.mean(0) - half,
    }


def _two(judge: Judge, got: Any) -> tuple[Any, Any]:
    got = tuple(got) if isinstance(got, Tensor | np.ndarray) and np.ndim(got) == 3 else got
    likely = "one tensor for the mean and one for half the interval's width"
    seen = f"one tensor {tuple(got.shape)}" if isinstance(got, Tensor | np.ndarray) else got
    judge.that(isinstance(got, tuple | list) and len(got) == 2, "two tensors are returned", seen=seen, likely=likely)
    return got[0], got[1]


@exercise("Causal tracing")
def average_indirect_effect(fn: Any, judge: Judge) -> None:
    restored = torch.tensor([[[0.3, 0.0, 0.2]], [[0.7, 0.3, 0.4]], [[0.8, 0.3, 0.3]]])
    mean, half = torch.tensor([[0.4, 0.0, 0.1]]), torch.tensor([[0.22632, 0.11316, 0.0]])
    cases = [("three prompts by hand", torch.tensor([0.1, 0.3, 0.2]), restored, mean, half)]
    for prompts, layers, pos in ((4, 3, 4), (3, 3, 5), (2, 5, 1), (7, 2, 6), (40, 4, 3)):
        corrupted = judge.rand(prompts, high=0.5)
        restored = corrupted[:, None, None] + judge.rand(prompts, layers, pos, low=-0.2, high=0.5)
        want = _of_effects(restored - corrupted[:, None, None])
        cases.append((f"{prompts} prompts, {layers} layers, {pos} positions", corrupted, restored, *want))
    for case, corrupted, restored, mean, half in cases:
        shape = tuple(restored.shape[1:])
        first, second = _two(judge, judge.call(fn, corrupted, restored))
        known: dict[tuple[int, ...], str] = {
            tuple(restored.shape): "a number for each prompt: take the mean over prompts",
            (len(corrupted),): "a number for each prompt: take the mean over prompts, and keep layers and positions",
            shape[1:]: "a mean over layers: take it over prompts only",
            shape[:1]: "a mean over positions: take it over prompts only",
            (len(corrupted), shape[1]): "a mean over layers: take it over prompts, the first axis",
            (len(corrupted), shape[0]): "a mean over positions: take it over prompts, the first axis",
            (): "one number: keep layers and positions apart, [layer, pos]",
            shape[::-1]: "transposed: layers come first, then positions",
        }
        known.pop(shape, None)
        for value, right, what, wrong in (
            (first, mean, "the average indirect effect", _wrong_means),
            (second, half, "half the interval's width", _wrong_widths),
        ):
            value = _shaped(judge, value, shape, known, what)
            _agree(judge, value, right.double(), f"{what}, {case}", functools.partial(wrong, corrupted, restored))


# 10.2 ------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=100)
def _wrong_transplants(task: _Task, name: str, p: int) -> Named:
    n, put_in = task.clean.shape[1], functools.partial(_patched, task, name, (ALL, p))
    zero, source = (
        "zero was put there",
        "does the hook write into x or return the new tensor, and is the source `donors`?",
    )
    logits = {
        f"nothing was changed: {source}": _plain(task.model, task.corrupted),
        "these are the donors' own logits: the run with the hook is that on `recipients`": _plain(
            task.model, task.clean
        ),
        "donors and recipients are exchanged": _patched(task.turned(), name, (ALL, p)),
        "the donor's activation was added: it takes the other's place": put_in(lambda x, s: x + s),
        f"{zero}: the donors' activation belongs there": put_in(lambda x, s: 0 * s),
        "the first donor's activation was put into all rows: row for row": put_in(lambda x, s: s[:1].expand_as(s)),
        "the donors' mean was put into all rows: row for row": put_in(lambda x, s: s.mean(0).expand_as(s)),
        "donors and recipients were paired in another order: row for row": put_in(lambda x, s: s.flip(0)),
        "only the first row got its donor's": _patched(task, name, (slice(0, 1), p)),
        "all positions were moved: `position` only": _patched(task, name, (ALL,)),
        "all positions up to `position` were moved: it alone": _patched(task, name, (ALL, slice(0, p + 1))),
        "the last position was moved, not `position`": _patched(task, name, (ALL, -1)),
        "`position` is off by one: the one after it was moved": _patched(task, name, (ALL, (p + 1) % n)),
        "`position` is off by one: the one before it was moved": _patched(task, name, (ALL, p - 1)),
        "a row was moved, not a position: the axes are [batch, pos, ...]": _patched(task, name, (p % len(task.clean),)),
    }
    right = put_in()
    found = {text: value[:, -1] for text, value in logits.items()}
    return found | {
        "these are the logits at `position`: those at the last position are asked for": right[:, p],
        "these are the logits at the first position: those at the last are asked for": right[:, 0],
        "these are probabilities: return the logits": right[:, -1].softmax(-1),
        "these are log probabilities: return the logits": right[:, -1].log_softmax(-1),
    }


@functools.lru_cache(maxsize=50)
def _transplants(seed: int) -> list[tuple[_Task, str, int, Tensor]]:
    judge, found = Judge("", "", seed), []
    small, plain = {"n_layers": 1, "n_heads": 2, "d_head": 7}, {"attn_only": True, "d_mlp": 0}
    for change, batch, length, name, p in (
        (small, 3, 6, "blocks.0.attn.hook_v", 2),
        (small | plain, 1, 5, "hook_embed", 1),
        ({}, 4, 5, "blocks.0.hook_mlp_out", 3),
    ):
        model = _model(judge, **change)
        donors, recipients = _tokens(judge, model, batch, length), _tokens(judge, model, batch, length)
        task = _Task(model, donors, recipients, donors[:, 0], recipients[:, 0])
        found.append((task, name, p, _patched(task, name, (ALL, p))[:, -1]))
    return found


@exercise("Moving a fact")
def transplanted(fn: Any, judge: Judge) -> None:
    for task, name, p, want in _transplants(judge.generator.initial_seed()):
        batch, n = task.clean.shape
        got = _ask(judge, fn, task, task.corrupted, task.clean, name, p, seen=task.model.cfg.attn_only)
        known: dict[tuple[int, ...], str] = {
            (batch, n, want.shape[1]): "logits at all positions: those at the last one are asked for, [:, -1]",
            (want.shape[1],): "one row: a row of logits for each recipient",
            (n, want.shape[1]): "the last row's logits at all positions: take [:, -1]",
            (batch,): "a number for each row: return the logits, not the answer",
        }
        if not isinstance(got, tuple):
            got = _shaped(judge, got, tuple(want.shape), known)
        claim = f"{name} at position {p}, batch {batch}"
        _agree(judge, got, want, claim, functools.partial(_wrong_transplants, task, name, p))


# 10.3 ------------------------------------------------------------------------------------------


def _least(key: Tensor, moment: Tensor) -> Tensor:
    """The u with key . u = 1 and the least u . C u, from the conditions of a Lagrangian optimum, in float64."""
    n, key = len(key), key.double()[:, None]
    system = torch.cat([torch.cat([moment.double(), key], 1), torch.cat([key.T, key.new_zeros(1, 1)], 1)])
    goal = torch.zeros(n + 1, dtype=torch.float64)
    goal[n] = 1
    return torch.linalg.solve(system, goal)[:n]


def _wrong_edits(W: Tensor, key: Tensor, change: Tensor, moment: Tensor) -> Named:
    W, key, change, moment = (x.double() for x in (W, key, change, moment))
    u, solved, outer = _least(key, moment), torch.linalg.solve(moment, key), torch.outer
    found = {
        "nothing was changed": W,
        "the identity stands for C: `moment` plays no part (torch.linalg.solve(moment, key))": W
        + outer(key / (key @ key), change),
        "this is C k, not its inverse: torch.linalg.solve(moment, key)": W
        + outer(moment @ key / (key @ moment @ key), change),
        "C itself stands above, its inverse below": W + outer(moment @ key / (key @ solved), change),
        "the denominator is missing: the key gets the change too much or too little": W + outer(solved, change),
        "the denominator is the key's square: it is key @ direction": W + outer(solved / (key @ key), change),
        "the denominator is the direction's square: it is key @ direction": W
        + outer(solved / (solved @ solved), change),
        "the denominator is a length: it is key @ direction": W + outer(solved / solved.norm(), change),
        "neither C nor a denominator: this is the key times the change": W + outer(key, change),
        "the change took the old output's place: it is added to it": W + outer(u, change - key @ W),
        "the change has the wrong sign": W - outer(u, change),
        "this is the update alone: add it to W": outer(u, change),
        "divided by the moment entry by entry: C's inverse is that of a matrix": W
        + outer(key / moment.diagonal() / (key @ (key / moment.diagonal())), change),
    }
    if W.shape[0] == W.shape[1]:
        found["the outer product is transposed: rows of W belong to the key, columns to the change"] = W + outer(
            change, u
        )
    return found


@exercise("Editing a fact")
def edited(fn: Any, judge: Judge) -> None:
    # C^-1 k = (1, 0.5), k . C^-1 k = 2: the rows get 1/2 and 1/4 of the change
    hand = [torch.tensor(x) for x in ([[1.0, 2.0], [0.0, 3.0]], [1.0, 2.0], [4.0, -2.0], [[1.0, 0.0], [0.0, 4.0]])]
    cases = [("two by two, worked by hand", hand, torch.tensor([[3.0, 1.0], [1.0, 2.5]]))]
    for d_in, d_out in ((5, 3), (4, 9), (1, 3), (30, 11)):
        basis = torch.linalg.qr(judge.randn(d_in, d_in))[0]
        moment = basis @ torch.diag(judge.rand(d_in, low=0.4, high=4.0)) @ basis.T
        given = [judge.randn(d_in, d_out), judge.randn(d_in), judge.randn(d_out), (moment + moment.T) / 2]
        given[1] = given[1] + given[1].sign()  # no key near zero
        want = given[0] + torch.outer(_least(given[1], given[3]), given[2].double())
        cases.append((f"{d_in} neurons, {d_out} outputs", given, want))
    for case, given, want in cases:
        W, key, change, _ = (x.double() for x in given)
        known: dict[tuple[int, ...], str] = {tuple(want.T.shape): "transposed: [d_in, d_out]"}
        known[(len(key),)] = "an outer product of direction and change makes a matrix"
        known.pop(tuple(want.shape), None)
        new = _shaped(judge, judge.call(fn, *given), tuple(want.shape), known)
        if not _same(new, want.double(), 1e-3):
            mistakes = _wrong_edits(*given)
            likely = "the key gets its change, but other keys are changed more than need be"
            got = key @ (new - W)
            if not _same(got, change, 1e-3):
                likely = "the key does not get its change: is key @ new - key @ W the change?"
            judge.close(new, want, case, mistakes=mistakes, tol=1e-3, likely=likely)
        claim = f"key @ (new - W) is the change, {case}"
        judge.close(key @ (new - W), change, claim, tol=2e-3 * math.sqrt(len(key)))
    mine = [x.clone() for x in given]
    judge.call(lambda: fn(*mine))  # these are no copies
    names = ("W", "key", "change", "moment")
    gone = [name for name, x, y in zip(names, mine, given, strict=True) if not torch.equal(x, y)]
    likely = "W += ... writes into the matrix that was handed in: return W + ..., a new one"
    judge.that(not gone, "what was handed in is as it was", seen=f"{', '.join(gone)} changed", likely=likely)


# 10.4 ------------------------------------------------------------------------------------------

Facts = dict[tuple[int, int], Tensor]


def _inputs(n_first: int, n_last: int) -> tuple[list[str], Tensor]:
    """Nothing, every single name and every pair, with what they are called."""
    places = [(), *((i,) for i in range(n_first + n_last))]
    pairs = list(itertools.product(range(n_first), range(n_last)))
    x = torch.zeros(len(places) + len(pairs), n_first + n_last)
    for row, ones in enumerate([*places, *((i, n_first + j) for i, j in pairs)]):
        x[row, list(ones)] = 1
    firsts, lasts = [f"first name {i} alone" for i in range(n_first)], [f"last name {j} alone" for j in range(n_last)]
    return ["no name", *firsts, *lasts, *(f"the pair {pair}" for pair in pairs)], x.double()


WIRINGS = {  # weight, bias, and what else
    "there is no bias: a single name brings the whole value, and a pair twice; -1 makes it an AND": (1.0, 0.0, ""),
    "single names bring half of a value: this is a sum, not an AND; a bias makes a neuron wait for both": (
        0.5,
        0.0,
        "",
    ),
    "it is silent always: two names of weight 1 give 2, and a bias of -2 takes all of it away": (1.0, -2.0, ""),
    "the bias is too small: a single name of weight 1 still fires with a bias of -0.5": (1.0, -0.5, ""),
    "the bias has the wrong sign: neurons fire although nothing is there": (1.0, 1.0, ""),
    "it is too weak: both names give 1, less the bias": (0.5, -0.5, ""),
    "it fires too strongly, with 2: the value is to come out once": (2.0, -2.0, ""),
    "last names stand behind the first names: the row of `last` is n_first + last": (1.0, -1.0, "no offset"),
    "the values are in another order than the neurons": (1.0, -1.0, "turned"),
    "the values have the wrong sign": (1.0, -1.0, "minus"),
}


def _stored(facts: Facts, x: Tensor, n_first: int, weight: float, bias: float, how: str) -> Tensor:
    """What a store with a slip answers to inputs x."""
    values = torch.stack(list(facts.values())).double()
    W = torch.zeros(x.shape[1], len(facts)).double()
    for neuron, (first, last) in enumerate(facts):
        W[first, neuron] = weight
        W[last if how == "no offset" else n_first + last, neuron] = weight
    return (x @ W + bias).relu() @ {"turned": values.flip(0), "minus": -values}.get(how, values)


@exercise("Wired: a store of facts")
def store(fn: Any, judge: Judge) -> None:
    hand: Facts = {(1, 2): torch.tensor([5.0, -1.0, 4.0]), (0, 2): torch.tensor([2.0, 3.0, 0.0])}
    cases = [(hand, 2, 3)]
    for n_first, n_last, d_out, most in ((5, 3, 4, 7), (1, 1, 3, 1), (2, 6, 1, 3), (3, 4, 5, 12), (9, 12, 7, 40)):
        pairs = list(itertools.product(range(n_first), range(n_last)))
        chosen = torch.randperm(len(pairs), generator=judge.generator)[:most].tolist()
        cases.append(({pairs[i]: judge.randn(d_out) + 0.1 for i in chosen}, n_first, n_last))
    for facts, n_first, n_last in cases:
        names, x = _inputs(n_first, n_last)
        size, n, d_out = len(facts), n_first + n_last, len(next(iter(facts.values())))
        want = torch.zeros(len(names), d_out).double()
        for pair, value in facts.items():
            want[names.index(f"the pair {pair}")] = value
        got = judge.call(fn, {pair: value.clone() for pair, value in facts.items()}, n_first, n_last)
        if isinstance(got, dict) and np.shape(got.get("W_out", ())) == (d_out, size) != (size, d_out):
            judge.fail("W_out has a row for each fact", seen=(d_out, size), likely="transposed: a row is a value")
        if isinstance(got, dict) and np.shape(got.get("W_in", ())) == (size, n) != (n, size):
            judge.fail("W_in has a column for each fact", seen=(size, n), likely="transposed: a column is a key")
        shapes: dict[str, tuple[int | str, ...]] = {
            "W_in": (n, "neurons"),
            "b_in": ("neurons",),
            "W_out": ("neurons", d_out),
        }
        W = _matrices(judge, got, shapes)
        neurons, likely = len(W["b_in"]), "a neuron for each stored fact, not for each name or each possible pair"
        judge.that(neurons == size, "one neuron for each fact", seen=neurons, expected=size, likely=likely)
        out = (x @ W["W_in"] + W["b_in"]).relu() @ W["W_out"]
        if not _same(out, want, 1e-4):
            slips = {text: _stored(facts, x, n_first, *slip) for text, slip in WIRINGS.items()}
            worst = int((out - want).abs().sum(1).argmax())
            likely = f"look at {names[worst]}"
            if float(out[0].abs().max()) > 1e-3:
                likely = "something comes out although no name is there: is the bias too high?"
            elif float(out[1 : 1 + n].abs().max()) > 1e-3:
                likely = "a single name fires a neuron: together they must be above the bias, alone below"
            claim = f"{size} facts, {n_first} first and {n_last} last names: the answers to all inputs; {names[worst]}"
            judge.close(out, want, claim, mistakes=slips, likely=likely)
        judge.that(True, "all answers")


# 10.5 ------------------------------------------------------------------------------------------

Noise = Callable[[torch.Generator], Tensor]


def _chance(
    task: _Task, subject: list[int], noise: Tensor | None, restore: tuple[str, Any] | None, answer: int, how: str = ""
) -> float:
    """The mean probability of an answer under noise at the subject, with a clean activation put in somewhere."""
    clean = _activations(task.model, task.clean)

    def edit(name: str, x: Tensor) -> Tensor:
        x = x.clone()
        if name == "hook_embed" and noise is not None:
            x[:, subject] = noise.double() + (0 if how == "instead" else x[:, subject])
        if restore and name == restore[0]:
            x[:, restore[1]] = clean[name][:, restore[1]]
        return x

    last = _run(task.model, task.clean, edit)[:, -1]
    return float(last.mean(0)[answer] if how == "logits" else last.softmax(-1)[:, answer].mean())


@functools.lru_cache(maxsize=100)
def _wrong_effects(task: _Task, subject: tuple[int, ...], noise: Noise, place: tuple[str, int], answer: int) -> Named:
    generator = torch.Generator().manual_seed(SEED)
    once, again = noise(generator), noise(generator)
    chance = functools.partial(_chance, task, list(subject), answer=answer)
    low, high, whole = chance(once, None), chance(once, place), chance(None, None)
    other = chance(noise(torch.Generator().manual_seed(0)), None)
    fixed = chance(noise(torch.Generator().manual_seed(0)), place) - other
    found = {
        "noise is drawn again for the second run: draw it once, and use it in both": chance(again, place) - low,
        "the order is turned round: restored minus noised only": low - high,
        "nothing was restored: was the activation recorded while the noise was on, or is the hook left out?": 0.0,
        "the second run has no noise: the subject is noised in both, and one place restored": whole - low,
        "the clean run stands in for the noised one": high - whole,
        "this is what is still missing, clean minus restored": whole - high,
        "this is the probability in the restored run: take the noised one's away": high,
        "all positions were restored: `position` only": chance(once, (place[0], ALL)) - low,
        "the subject's positions were restored: `position` only": chance(once, (place[0], list(subject))) - low,
        "the noise took the embedding's place: it is added": chance(once, place, how="instead")
        - chance(once, None, how="instead"),
        "these are logits: take probabilities": chance(once, place, how="logits") - chance(once, None, how="logits"),
        "the noise comes from seed 0: use `seed`": fixed,
    }
    return {text: torch.tensor(value).double() for text, value in found.items()}


SEED = 5


@functools.lru_cache(maxsize=50)
def _noisy(seed: int) -> list[tuple[Any, ...]]:
    judge, found = Judge("", "", seed), []
    small = {"n_layers": 1, "n_heads": 2, "d_head": 7, "d_model": 17}
    big, one = _model(judge, d_vocab=9), _model(judge, d_vocab=7, **small)
    for case, model, batch, length, subject, place in (
        ("after the last attention, which cannot matter", one, 2, 6, (1, 3), ("blocks.0.hook_mlp_out", 2)),
        ("the stream at the subject's last word", big, 3, 5, (1, 2), ("blocks.1.hook_resid_pre", 2)),
        ("one prompt, an attention output at END", one, 1, 5, (1,), ("blocks.0.hook_attn_out", 4)),
    ):
        tokens = _tokens(judge, model, batch, length)
        shape = batch, len(subject), model.cfg.d_model
        noise = functools.partial(_drawn, shape)
        task = _Task(model, tokens, tokens, tokens[:, 0], tokens[:, 0])
        drawn = noise(torch.Generator().manual_seed(SEED))
        clean = _plain(model, tokens)[:, -1].softmax(-1).mean(0)

        def edit(name: str, x: Tensor, at: tuple[int, ...] = subject, by: Tensor = drawn) -> Tensor:
            return x.index_add(1, torch.tensor(at), by.double()) if name == "hook_embed" else x

        noised = _run(model, tokens, edit)[:, -1].softmax(-1).mean(0)
        answer = int((clean - noised).argmax())
        want = _chance(task, list(subject), drawn, place, answer) - float(noised[answer])
        found.append((case, task, subject, noise, place, answer, want))
    return found


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.5 * torch.randn(*shape, generator=generator)


@exercise("Causal tracing")
def effect(fn: Any, judge: Judge) -> None:
    for case, task, subject, noise, place, answer, want in _noisy(judge.generator.initial_seed()):
        got = _ask(judge, fn, task, task.clean, list(subject), noise, *place, answer, SEED)
        got = _number(judge, got, "the effect")
        mistakes = functools.partial(_wrong_effects, task, subject, noise, place, answer)
        _agree(judge, got, torch.tensor(want), case, mistakes)
        if case.endswith("cannot matter"):
            likely = "both runs are to have the same noise, drawn once"
            judge.that(abs(float(got)) < 1e-6, f"zero, {case}", seen=float(got), expected="0", likely=likely)


# 10.6 and 10.7 ---------------------------------------------------------------------------------

ASIDE = ("unlike", "Otto", "Marsh")


@functools.cache
def _homes() -> tuple[Tensor, Tensor]:
    """Who lives where, asked with the aside: rows of words, and answers. The subject stands at 1 and 2."""
    ids = tinyworld.TOKENIZER.id
    facts = [f for f in tinyworld.FACTS if f.relation == "home" and f.subject != ASIDE[1:]]
    random.Random(0).shuffle(facts)  # as in the notebook
    rows = [[0, *map(ids, (*fact.subject, ",", *ASIDE, ",", "lives", "in"))] for fact in facts]
    return torch.tensor(rows), torch.tensor([ids(fact.answer) for fact in facts])


FIRST, LAST = 1, 2


@functools.cache
def _transplanted(
    name: str,
    seed: int = 1,
    shifts: tuple[int, ...] = (1,),
    p: int = LAST,
    at: str = "0.hook_mlp_out",
    how: str = "",
) -> float:
    """In which share of the cases the answer becomes the donor's, a stranger some places further down the list."""
    tokens, answers = _homes()
    model, hits = load(name, seed=seed), []
    for shift in shifts:
        donors, theirs = tokens.roll(-shift, 0), answers.roll(-shift)
        rows = answers != theirs
        if how != "namesakes":
            rows = rows & (tokens[:, 1:3] != donors[:, 1:3]).all(1)
        if how == "all":
            rows = rows | True
        task = _Task(model, donors[rows], tokens[rows], theirs[rows], answers[rows])
        task = task.turned() if how == "turned" else task
        says = _patched(task, f"blocks.{at}", (ALL, p))[:, -1].argmax(-1)
        hits.append(says == (task.wrong if how == "own" else task.right))
    return float(torch.cat(hits).double().mean())


RECALL = ("recall", "recall-plain")


def _moves(**slip: Any) -> list[float]:
    return [_transplanted(name, **slip) for name in RECALL]


@exercise("What makes a model look there")
def moved(answer: Any, judge: Judge) -> None:
    got = list(_numbers(judge, answer, *RECALL).values())
    seen = f"{got[0]:.3f} for recall, {got[1]:.3f} for recall-plain"
    judge.that(max(map(abs, got)) <= 1.0001, "shares go from 0 to 1", seen=seen, likely="in percent: give shares")
    own, truth = _moves(), _moves(shifts=(3, 5))

    def is_(want: list[float], off: float = 2e-4) -> bool:
        differs = max(abs(a - b) for a, b in zip(own, want, strict=True)) > 3 * off
        return differs and all(abs(a - b) < off for a, b in zip(got, want, strict=True))

    slips: dict[str, Callable[[], list[float]]] = {
        "the two models are exchanged": lambda: own[::-1],
        "some donors share a name with the recipient, or the answer: take strangers(...)": lambda: _moves(how="all"),
        "some donors share a name with the recipient: take strangers(...)": lambda: _moves(how="namesakes"),
        "recipients and donors are exchanged": lambda: _moves(how="turned"),
        "this is the share that keeps its own answer: say where it becomes the donor's": lambda: _moves(how="own"),
        "this is what is not moved: take the share in which the answer becomes the donor's": lambda: [
            1 - x for x in own
        ],
        "that is the first name: the subject's last word is q.subject[1]": lambda: _moves(p=FIRST),
        "these are the models of seed 0: load them with seed=1": lambda: _moves(seed=0),
        "these are the models of seed 2: load them with seed=1": lambda: _moves(seed=2),
        "nothing is moved so: is it MLP 0, and the subject's last word (not END)?": lambda: _moves(p=-1),
        "that is MLP 1: take MLP 0": lambda: _moves(at="1.hook_mlp_out"),
        "that is the whole stream after block 0: MLP 0's output alone": lambda: _moves(at="0.hook_resid_post"),
        "that is the attention's output: take MLP 0's": lambda: _moves(at="0.hook_attn_out"),
        "this is the course model, twice: load both by name": lambda: 2 * [_transplanted("tinyworld")],
        'this is the model "recall" twice: load both by name': lambda: [own[0], own[0]],
        'this is the model "recall-plain" twice: load both by name': lambda: [own[1], own[1]],
    }
    close = [abs(a - b) < 0.12 for a, b in zip(got, truth, strict=True)]
    exact = all(abs(a - b) < 2e-4 for a, b in zip(got, own, strict=True))
    likely = "" if exact else next((text for text, value in slips.items() if is_(value())), "")
    if not likely and not all(close):
        swapped = all(abs(a - b) < 0.12 for a, b in zip(got[::-1], truth, strict=True))
        likely = (
            "the two models are exchanged" if swapped else "factual_recall.transplant(...).argmax(dim=1), by the hint"
        )
    for name, ok, value, want in zip(RECALL, close, got, truth, strict=True):
        claim, expected = f"in which share the answer becomes the donor's, {name}", f"{want:.2f}, give or take 0.12"
        judge.that(ok and not likely, claim, seen=seen if ok else value, expected=expected, likely=likely)


@functools.cache
def _traced(seed: int = 0, samples: int = 8, at: str = "0.hook_mlp_out", p: int = LAST, which: int = 0) -> list[float]:
    """The mean probability of the right answer under noise, and with one place restored, of the first eight homes."""
    model, generator, (tokens, answers) = load("tinyworld", seed=which), torch.Generator().manual_seed(seed), _homes()
    W_E = model.embed.W_E
    drawn = [torch.randn(2 * samples, W_E.shape[1], generator=generator) for _ in range(8)]
    noise = 3 * W_E.std() * torch.cat(drawn).unflatten(0, (-1, 2))
    rows, rights = (x[:8].repeat_interleave(samples, 0) for x in (tokens, answers))
    clean, found = _activations(model, rows)[f"blocks.{at}"], []
    for restored in (False, True):

        def edit(name: str, x: Tensor, restored: bool = restored) -> Tensor:
            x = x.clone()
            if name == "hook_embed":
                x[:, [FIRST, LAST]] += noise
            if restored and name == f"blocks.{at}":
                x[:, p] = clean[:, p]
            return x

        last = _run(model, rows, edit)[:, -1].softmax(-1)
        found.append(float(last.gather(1, rights[:, None]).mean()))
    return found


def _effect_of(**slip: Any) -> float:
    low, high = _traced(**slip)
    return high - low


@functools.cache
def _edits(layer: int = 0, which: int = 0) -> float:
    """In which share of the first eight homes a rank-one edit makes another town the answer, each on its own."""
    model, (tokens, answers) = load("tinyworld", seed=which), _homes()
    tokens, towns = tokens[:8], tinyworld.ANSWERS["home"]
    ids = [tinyworld.TOKENIZER.id(town) for town in towns]
    goals = torch.tensor([next(t for t in ids[i:] if t != own) for i, own in enumerate(answers[:8].tolist())])
    at, now = f"blocks.{layer}.", _activations(model, tokens)
    keys, outputs = now[f"{at}mlp.hook_post"][:, LAST], now[f"{at}hook_mlp_out"][:, LAST]
    used = _activations(model, tinyworld.batch(random.Random(9), tinyworld.TOKENIZER, 24))[f"{at}mlp.hook_post"]
    used = used.flatten(0, 1)
    moment = used.T @ used / len(used)
    moment += 1e-4 * moment.diagonal().mean() * torch.eye(len(moment))
    step, changes = outputs.norm(dim=1).mean() / math.sqrt(outputs.shape[1]), torch.zeros_like(outputs)
    changes = changes.requires_grad_()
    optimizer = torch.optim.Adam([changes], lr=0.3 * float(step))

    def add(name: str, x: Tensor) -> Tensor:
        here = torch.zeros(x.shape[1], 1).double()
        here[LAST] = 1
        return x + here * changes[:, None] if name == f"{at}hook_mlp_out" else x

    with torch.enable_grad():
        for _ in range(30):
            loss = torch.nn.functional.cross_entropy(_run(model, tokens, add)[:, -1], goals, reduction="sum")
            penalty = (changes / outputs.norm(dim=1, keepdim=True)).square().sum()
            optimizer.zero_grad()
            (loss + 0.05 * penalty).backward()
            optimizer.step()
    u, fired = torch.stack([_least(key, moment) for key in keys]), {}

    def change(name: str, x: Tensor) -> Tensor:
        if name == f"{at}mlp.hook_post":
            fired["post"] = torch.einsum("bpm,bm->bp", x, u)
        return x + fired["post"][..., None] * changes[:, None].detach() if name == f"{at}hook_mlp_out" else x

    return float((_run(model, tokens, change)[:, -1].argmax(-1) == goals).double().mean())


@exercise("Does tracing tell where to edit?")
def both(answer: Any, judge: Judge) -> None:
    traced, done = _numbers(judge, answer, "traced", "edited").values()
    truth, share = _effect_of(seed=77, samples=20), _edits()
    seen = f"traced {traced:.4f}, edited {done:.3f}"
    low, high = _traced()
    likely = _first(
        {
            "traced and edited are exchanged": abs(done - truth) < 0.03 and traced > 0.8,
            "this is in percent: give shares": done > 1.5,
        }
    )
    if not likely and abs(traced - _effect_of()) > 1e-5:
        slips: dict[str, Callable[[], float]] = {
            "this is `restored`: the corrupted probability is to be taken away (trace.indirect)": lambda: high,
            "this is the probability in the corrupted run: take trace.indirect": lambda: low,
            "the sign is turned round: restored minus corrupted": lambda: low - high,
            'that is the stream, "resid_pre": take the site "mlp_out"': lambda: _effect_of(at="0.hook_resid_pre"),
            'that is "attn_out": take the site "mlp_out"': lambda: _effect_of(at="0.hook_attn_out"),
            "that is END: take the subject's last word, asked.subject[1]": lambda: _effect_of(p=-1),
            "that is the first name: take the subject's last word, asked.subject[1]": lambda: _effect_of(p=FIRST),
            "that is layer 1: take MLP 0": lambda: _effect_of(at="1.hook_mlp_out"),
            "that is the last layer, MLP 3: take MLP 0": lambda: _effect_of(at="3.hook_mlp_out"),
            "this is the course model of seed 1: take that of seed 0": lambda: _effect_of(which=1),
            "this is the course model of seed 2: take that of seed 0": lambda: _effect_of(which=2),
        }
        likely = next((text for text, value in slips.items() if abs(traced - value()) < 3e-5), "")
    ok = abs(traced - truth) < 0.025 and not likely
    more = "this is too much: MLP 0 alone, at the subject's last word, traced.indirect[:, 0, asked.subject[1]].mean()"
    claim, expected = "what restoring MLP 0 at the subject's last word brings back", f"{truth:.3f}, give or take 0.025"
    judge.that(ok, claim, seen=seen, expected=expected, likely=likely or more)
    likely = "each edit starts from the unedited model: made one upon another they spoil each other"
    if abs(done) < 1e-6:
        likely = "the edited model is the one to ask: rome returns a new one, and leaves the old one as it was"
    elif done == _edits(1) and done < share:
        likely = "does each edit start from the unedited model, and is it at layer 0? At layer 1 some fail"
    elif done > 1:
        likely = "a share goes from 0 to 1"
    claim = "the share of the eight edits that make their target the answer"
    judge.that(share - 0.15 < done <= 1, claim, seen=done, expected=f"about {share:.3g}", likely=likely)


# 10.8 ------------------------------------------------------------------------------------------

STATEMENTS = {
    "a": (
        True,
        "noise is the corruption, and a clean activation is put back: that is denoising, and shows what suffices",
    ),
    "b": (False, "the window may owe its effect to a few of them, or to all together and to none alone"),
    "c": (True, "it suffices to move the answer, for these prompts: it holds the fact, or says which to fetch"),
    "d": (False, "in exercise 10.7 edits work where nothing was traced: they force an answer, and correct none"),
    "e": (False, "it was made for one prompt's key: another form of words may read another key, or look elsewhere"),
    "f": (True, "the key is the subject's, whatever is asked about it; bleeding into other facts has to be tested"),
    "g": (
        False,
        "in exercise 10.6 they look in different places, since their texts asked for facts in different places",
    ),
    "h": (True, "by construction: key @ (new - W) is the change, whatever C is"),
    "i": (False, "one neuron may hold several facts: in the wired model sixteen neurons hold three each"),
}


@exercise("Does tracing tell where to edit?")
def statements(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)
