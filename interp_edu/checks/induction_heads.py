"""Checks of chapter 6's exercises. Each stands on its own: loops over words, streams built by hand, measured anew."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp_edu.checks.attention_heads import _entries, _number, _shaped
from interp_edu.checks.core import Judge, exercise
from interp_edu.checks.transformer import _matrices, _model, _norm, _size, _tokens
from interp_edu.hooks import hook_name, hooked, run_with_cache
from interp_edu.pretrained import load
from interp_edu.transformer import Transformer

Mistakes = Iterator[tuple[str, Tensor]]


def _which(got: Tensor, want: Tensor, mistakes: Mistakes, otherwise: str = "") -> str:
    """What the first mistake that leads to `got` is called; they are worked out only if it is not what is wanted."""
    if torch.allclose(got, want.double(), atol=1e-4):
        return ""
    return next((text for text, value in mistakes if torch.allclose(got, value.double(), atol=1e-3)), otherwise)


# 6.1 -------------------------------------------------------------------------------------------


def _repeated(judge: Judge, fn: Any, rows: int, period: int, d_vocab: int) -> Tensor:
    """The random half of an answer, [rows, period], if its rows have the right form."""
    value = judge.call(fn, rows, period, d_vocab)
    stacked = "the halves are stacked below each other: torch.cat(..., dim=1) puts them side by side"
    known: dict[tuple[int, ...], str] = {
        (rows, 2 * period): "the beginning, word 0, is missing",
        (rows, 2 * period + 2): "word 0 stands at the beginning of the row only, not again before the second half",
        (rows, 1 + period): "the words come once: they should come again",
        (2 * rows, 1 + period): stacked,
        (2 * rows, period): stacked,
        (1 + 2 * period, rows): "rows first, then positions",
    }
    case = f"the result for rows={rows}, period={period}, d_vocab={d_vocab}"
    x = _shaped(judge, value, (rows, 1 + 2 * period), known, case)
    kind = str(value.dtype if isinstance(value, Tensor) else np.asarray(value).dtype)
    likely = "torch.zeros makes floats, and torch.cat then makes all of it floats: say dtype=torch.int64"
    judge.that("int" in kind, "the words are whole numbers", seen=kind, likely=likely)
    x = x.long()
    first, second = x[:, 1:].split(period, dim=1)
    judge.that(
        (x[:, 0] == 0).all(), "every row begins with word 0", seen=f"rows begin with {x[:, 0].unique().tolist()[:5]}"
    )
    zeros = (x[:, 1:] == 0).double().mean()
    likely = "random words go from 1 to d_vocab - 1, so the lower end of randint is 1"
    judge.that(zeros == 0, "word 0 stands at the beginning only", seen=f"{zeros:.1%} of the rest are 0", likely=likely)
    judge.that(
        x.max() < d_vocab and x.min() >= 0,
        f"words go from 1 to d_vocab - 1, which is {d_vocab - 1}",
        seen=f"word {int(x.max() if x.max() >= d_vocab else x.min())}",
        likely="randint leaves out its upper end already, so it should be d_vocab",
    )
    likely = "the second half is drawn anew: draw once, and put it twice"
    if torch.equal(first.sort().values, second.sort().values):
        likely = "the same words, but in another order: they should come in the same order"
    if torch.equal(x[:, 1::2], x[:, 2::2]):
        likely = "each word was repeated on the spot, as repeat_interleave does: repeat the whole row of words"
    again = torch.equal(first, second)
    judge.that(again, "the second half has the words of the first", seen=x[0].tolist(), likely=likely)
    return first


@exercise("The puzzle: the same words again")
def repeated_rows(fn: Any, judge: Judge) -> None:
    for rows, period, V in ((3, 5, 9), (4, 8, 6), (1, 7, 4), (5, 1, 3)):
        _repeated(judge, fn, rows, period, V)
    rows, period, n = 700, 24, 40
    words = _repeated(judge, fn, rows, period, n + 1) - 1  # from 0 to n - 1 now
    case = f"in {rows} rows of {period} words, d_vocab={n + 1}"
    share = float((words[:, :, None] == words[:, None, :]).double().mean() * period - 1) / (period - 1)
    missing = (words.flatten().bincount(minlength=n) == 0).nonzero().flatten().tolist()
    likely = "are all words drawn by one randint?"
    if torch.equal(words[0], words[-1]):
        likely = "one row was drawn for all: the shape to draw is (rows, period)"
    elif share > 0.99:
        likely = "one word was drawn for the whole row: the shape to draw is (rows, period)"
    elif share < 0.1 / n:
        likely = "no word comes twice, so they are not independent: randperm deals cards, randint throws dice"
    elif missing == [n - 1]:
        likely = "the last word never comes: randint leaves out its upper end already, so it should be d_vocab"
    elif missing == [0]:
        likely = "word 1 never comes: the lower end of randint is drawn too"
    elif bool((words.diff(dim=1) >= 0).all()):
        likely = "the words of each row are sorted"
    for claim, values, kinds in (
        ("all words are equally likely", words, n),
        ("each row is drawn independently of the row above it", words.diff(dim=0) % n, n),
        ("each word is drawn independently of the word before it", words.diff(dim=1) % n, n),
        ("all words are equally likely at each position", words + n * torch.arange(period), n * period),
    ):
        mean = values.numel() / kinds
        off = float((values.flatten().bincount(minlength=kinds) - mean).abs().max()) / math.sqrt(mean)
        seen = f"counts are up to {off:.0f} standard deviations off, {case}"
        judge.that(off < 9, claim, seen=seen, likely=likely)
    claim, seen = "two words of a row are the same as often as chance has it", f"{share:.4f} of the pairs {case}"
    usual = 7 * math.sqrt(n / (rows * period * (period - 1) / 2))
    judge.that(abs(share * n - 1) < usual, claim, seen=seen, expected=f"about {1 / n:.4f}", likely=likely)
    other = not torch.equal(_repeated(judge, fn, rows, period, n + 1) - 1, words)
    judge.that(other, "a second call gives other words", seen="the same words", likely="is a seed set in the function?")
    _repeated(judge, fn, 2, 3, 2)  # a single word to draw from


# 6.2 -------------------------------------------------------------------------------------------

Keys = Callable[[list[int]], list[list[int] | None]]  # of a row of words, for each query; None if it does not count


def _after(row: list[int], shift: int = 1) -> list[list[int] | None]:
    """For each query the positions `shift` after the earlier occurrences of its word, up to its own, or None."""
    earlier = ([p + shift for p in range(q) if row[p] == word and 0 <= p + shift <= q] for q, word in enumerate(row))
    return [keys or None for keys in earlier]


def _given(pattern: Tensor, tokens: Tensor, keys: Keys = _after, reduce: str = "sum") -> list[Tensor]:
    """For each row, the attention [query, head] that queries give to their keys; those whose keys are None are out."""
    rows = []
    for table, row in zip(pattern.double(), tokens.tolist(), strict=True):
        asked = [(query, found) for query, found in enumerate(keys(row)) if found is not None]
        given = [getattr(table[:, q, found or [q]] * bool(found), reduce)(-1) for q, found in asked]
        rows.append(torch.stack(given) if given else table[:, :0, 0].T)
    return rows


def _mean(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows).mean(0).nan_to_num(0)


PREFIX_MISTAKES: dict[str, Keys] = {
    "attention to the earlier occurrences themselves: go one to the right": lambda row: _after(row, 0),
    "this looks two positions after the earlier occurrences: go one to the right": lambda row: _after(row, 2),
    "this looks one position before the earlier occurrences: go one to the right": lambda row: _after(row, -1),
    "only the last earlier occurrence counts: all should": lambda row: [keys and keys[-1:] for keys in _after(row)],
    "only the first earlier occurrence counts: all should": lambda row: [keys and keys[:1] for keys in _after(row)],
    "averaged over all queries: those whose word is new do not count": lambda row: [keys or [] for keys in _after(row)],
    "each query counts as its own earlier occurrence: only positions before it may match, tril(-1)": (
        lambda row: [keys or [] for keys in _after(row)[:-1]] + _after(row)[-1:]
    ),
    "queries count whose word comes only later: only positions before it may match, tril(-1)": (
        lambda row: [keys or ([] if row[q] in row[q + 1 : -1] else None) for q, keys in enumerate(_after(row))]
    ),
    "the query's own position is left out: if the word before is the same word, it is the one after it": (
        lambda row: [[k for k in keys or [] if k < q] or None for q, keys in enumerate(_after(row))]
    ),
    "this counts back half of the row: only rows that repeat as a whole are right then, use the words": (
        lambda row: [[q - (len(row) - 3) // 2] if q > (len(row) - 1) // 2 else None for q in range(len(row))]
    ),
}


def _prefix_mistakes(pattern: Tensor, tokens: Tensor) -> Mistakes:
    rows, weigh = _given(pattern, tokens), "rows have different numbers of queries that count, average over all at once"
    means = torch.stack([row.mean(0) for row in rows])
    for text, keys in PREFIX_MISTAKES.items():
        yield text, _mean(_given(pattern, tokens, keys))
    yield "averaged over a query's successors: their sum is asked", _mean(_given(pattern, tokens, reduce="mean"))
    yield "only the successor with most attention: their sum is asked", _mean(_given(pattern, tokens, reduce="amax"))
    yield "queries and keys are exchanged: the pattern is [batch, head, query, key]", _mean(_given(pattern.mT, tokens))
    yield f"a mean of the rows' means: {weigh}", means.nanmean(0).nan_to_num(0)
    yield f"a mean of the rows' means, with 0 for rows without a repeat: {weigh}", means.nan_to_num(0).mean(0)
    yield "only the first row counts here", _mean(rows[:1])
    yield "this is a sum over queries: divide by their number", torch.cat(rows).sum(0)


@exercise("Three scores")
def prefix_matching_score(fn: Any, judge: Judge) -> None:
    # Query 3 looks for what followed position 1, query 5 for what followed 1 and 3, query 7 also for what followed 5.
    table = torch.eye(9)
    table[3, :4] = torch.tensor([0.06, 0.14, 0.6, 0.2])
    table[5, :6] = torch.tensor([0.05, 0.1, 0.2, 0.11, 0.3, 0.24])
    table[7, :8] = torch.tensor([0.1, 0.05, 0.1, 0.14, 0.3, 0.07, 0.15, 0.09])
    tokens = torch.tensor([[0, 3, 1, 3, 2, 3, 4, 3, 5]])
    hand = torch.tensor([(0.6 + (0.2 + 0.3) + (0.1 + 0.3 + 0.15)) / 3])
    cases = [("the words 0 3 1 3 2 3 4 3 5 and one head", tokens, table[None, None], hand)]
    for batch, heads, n, V, what in (
        (1, 2, 15, 6, "one row and two heads"),
        (4, 3, 11, 6, "four rows, one without any repeat, and three heads"),
        (2, 5, 40, 12, "two long rows and five heads"),
        (3, 4, 15, 20, "three rows that repeat as a whole"),
    ):
        tokens = torch.randint(1, V, (batch, n), generator=judge.generator)
        tokens[0, -2:] = tokens[0, 1]
        if "whole" in what:
            tokens[:, 8:] = tokens[:, 1:8]
        elif batch > 1:  # fewer queries count here than in the other rows, and in the next none
            tokens[1, : 2 * n // 3] = V + torch.arange(2 * n // 3)
            tokens[2:3] = V + torch.randperm(n, generator=judge.generator)
        tokens[:, 0] = 0
        pattern = (3 * judge.randn(batch, heads, n, n)).exp().tril()
        pattern /= pattern.sum(-1, keepdim=True)
        cases.append((what, tokens, pattern, _mean(_given(pattern, tokens))))
    for what, tokens, pattern, want in cases:
        batch, heads = pattern.shape[:2]
        known: dict[tuple[int, ...], str] = {
            (batch, heads): "one score for each row and head: average over all rows, keep the heads",
            (): "the heads were averaged too: return one score for each head",
        }
        value = judge.call(fn, pattern, tokens)
        value = np.asarray(value) if isinstance(value, list | tuple) else value
        got = _shaped(judge, value, (heads,), known, f"the score of {what}")
        listing = "list the pairs of query and key that count, by hand"
        judge.close(got, want, what, likely=_which(got, want, _prefix_mistakes(pattern, tokens), listing))


# 6.3 -------------------------------------------------------------------------------------------


def _later_loss(logs: Tensor, tokens: Tensor, early: int, late: int, back: int = 1, shift: int = 0) -> Tensor:
    """The mean loss of the token at `late` minus that at `early`, from log probabilities `back` before it."""
    n, rows = tokens.shape[1], range(len(tokens))
    at = [(min(p + shift - back, n - 1), min(p + shift, n - 1)) for p in (early, late)]
    early_loss, late_loss = (-logs[rows, place, tokens[:, token]].mean() for place, token in at)
    return late_loss - early_loss


def _in_context_mistakes(logits: Tensor, tokens: Tensor, early: int, late: int) -> Mistakes:
    logs, at = logits.log_softmax(-1), (tokens, early, late)
    losses = torch.cat([0 * logs[:, :1, 0], -logs[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]], dim=1)
    mean, rise = losses.mean(0), losses[:, late] - losses[:, early]
    so_far = mean.cumsum(0) / torch.arange(len(mean)).clamp(min=1)
    yield "the logits at the token's own position predict the next one: go one back", _later_loss(logs, *at, back=0)
    yield "the loss of the token after it: `late` and `early` are the predicted ones", _later_loss(logs, *at, shift=1)
    yield "the token is one too early: it stands at `position`", _later_loss(logs, *at, back=0, shift=-1)
    yield "the logits one after the token: take those one before it", _later_loss(logs, *at, back=-1)
    yield "the sign is turned: late minus early, and a loss is minus a log probability", -rise.mean()
    yield "these are probabilities: a loss is minus the logarithm of one", _later_loss(logs.exp(), *at)
    yield "these are logits: log_softmax makes log probabilities of them", _later_loss(logits, *at)
    yield "the softmax runs over the rows: the vocabulary is dim=-1", _later_loss(logits.log_softmax(0), *at)
    yield "the softmax runs over the positions: the vocabulary is dim=-1", _later_loss(logits.log_softmax(1), *at)
    yield "this is in bits: nats come from the natural logarithm", rise.mean() / math.log(2)
    yield "this is with logarithms to base 10: nats come from the natural one", rise.mean() / math.log(10)
    yield "means over all tokens up to a position: the two alone are asked", so_far[late] - so_far[early]
    yield "means over all tokens before a position: the two alone are asked", so_far[late - 1] - so_far[early - 1]
    yield "only the first row counts here: take the mean over rows", rise[0]
    yield "only the last row counts here: take the mean over rows", rise[-1]
    yield "a sum over rows: take the mean", rise.sum()
    yield "a difference of perplexities: leave out the exponential", mean[late].exp() - mean[early].exp()
    yield "a ratio of the two losses: their difference is asked", mean[late] / mean[early]
    yield "this is the late loss alone: subtract the early one", mean[late]


@exercise("Three scores")
def in_context_score(fn: Any, judge: Judge) -> None:
    p = torch.tensor([[1, 1, 7, 3], [3, 3, 3, 3], [2, 1, 1, 8], [0.5, 2, 9, 0.5], [4, 5, 1.5, 1.5], [1, 9, 1, 1]]) / 12
    cases = [
        ("the case worked by hand, log 3/12 minus log 9/12", p.log()[None], torch.tensor([[1, 0, 3, 1, 2, 0]]), 2, 4)
    ]
    for batch, n, V, early, late in ((3, 12, 7, 4, 9), (2, 14, 11, 3, 8), (5, 9, 6, 6, 2), (1, 8, 5, 1, 7)):
        tokens = torch.randint(V, (batch, n), generator=judge.generator)
        what = f"{batch} row{'s' * (batch > 1)} of {n} tokens, early={early} and late={late}"
        cases.append((what, 2 * judge.randn(batch, n, V), tokens, early, late))
    tokens = torch.randint(9, (4, 7), generator=judge.generator)
    cases.append(("twice the same position: no difference", judge.randn(4, 7, 9), tokens, 3, 3))
    large = torch.cat([judge.randn(4, 4, 9), 90 * judge.randn(4, 3, 9)], dim=1)  # the late probabilities underflow
    cases.append(("very large logits", large, tokens, 2, 6))
    for what, logits, tokens, early, late in cases:
        want = _later_loss(logits.double().log_softmax(-1), tokens, early, late)
        got = _number(judge, judge.call(fn, logits, tokens, early, late), f"the score of {what}")
        mistakes = _in_context_mistakes(logits.double(), tokens, early, late)
        judge.close(got, want, what, likely=_which(got, want, mistakes))


# 6.4 -------------------------------------------------------------------------------------------


def _rows_of_words(judge: Judge, V: int) -> list[list[int]]:
    """Word 0 and then: random ones; one again at once; one with several successors; random ones; all words new."""
    a, b, c, d = (1 + torch.randperm(V - 1, generator=judge.generator))[:4].tolist()
    fresh = (1 + torch.randperm(V - 1, generator=judge.generator)).tolist()
    drawn = torch.randint(1, V, (59,), generator=judge.generator).tolist()
    return [[0, *drawn[:20]], [0, a, a, b, a, c, a], [0, a, b, a, b, a, c, d, a], [0, *drawn], [0, *fresh, *fresh[:2]]]


def _why_elsewhere(pattern: Tensor, words: Tensor, wanted: Tensor) -> str:
    """What queries look at that should look at the keys `wanted`, [query, key]."""
    old, n = wanted.any(1), len(words)

    def on(keys: Tensor) -> float:
        return float((pattern * (keys & ~wanted)).sum(1)[old].mean())

    if bool((pattern.amax(1) * torch.arange(1, n + 1))[old].max() < 1.01):
        return "it attends to everything alike: the first d_vocab dimensions hold the word, the next the word before"
    if on((torch.arange(n) == 0).expand(n, n)) > 0.3:
        return "it rests on word 0 although there is a match: a match must score clearly higher than the resting place"
    if on(words[:, None] == words) > 0.4:
        return "it looks for the same word (a duplicate-token head): keys must read the word before"
    if on(words.roll(1)[:, None] == words) > 0.4:
        return "it looks for the word before its own: are W_Q and W_K exchanged? The query reads the current word"
    if bool((pattern.masked_fill(wanted, 0).amax(1) < pattern.masked_fill(~wanted, 1).amin(1))[old].all()):
        return "the right positions, but not sharply: scores are divided by sqrt(d_head), make them larger"
    return "queries read the current word, keys the word before; only where the two agree the score is high"


@exercise("The circuit, by hand")
def induction_head(fn: Any, judge: Judge) -> None:
    for V in (9, 5, 40, _size(judge, 10, 30)):
        shapes: dict[str, tuple[int | str, ...]] = dict.fromkeys(("W_Q", "W_K"), (3 * V, "d_head"))
        shapes |= {"W_V": (3 * V, "n"), "W_O": ("n", 3 * V)}
        W = _matrices(judge, judge.call(fn, V), shapes)
        for words in _rows_of_words(judge, V):
            _judge_head(judge, W, words, V)


def _judge_head(judge: Judge, W: dict[str, Tensor], words: list[int], V: int) -> None:
    """One row: `words` begins with word 0. Its first position sees itself alone, so there only the output counts."""
    n, found = len(words), {query: keys for query, keys in enumerate(_after(words)) if keys}
    old, new, where = list(found), [query for query in range(n) if query not in found], f"{n} words, d_vocab={V}"
    share, eye = torch.zeros(n, n, dtype=torch.float64), torch.eye(V, dtype=torch.float64)
    for query, keys in found.items():
        share[query, keys] = 1 / len(keys)
    own = eye[words]
    x = torch.cat([own, own.roll(1, dims=0).index_fill(0, torch.tensor(0), 0), torch.zeros(n, V)], dim=1)
    scores = (x @ W["W_Q"]) @ (x @ W["W_K"]).T / math.sqrt(W["W_Q"].shape[1])
    pattern = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).softmax(-1)
    out = pattern @ x @ W["W_V"] @ W["W_O"]
    written, average, own = out[:, 2 * V :], (share @ own)[old], own[old]
    total = (pattern * (share > 0)).sum(1)[old]
    query = old[int(total.argmin())]
    most, at = pattern[query].max(0)
    judge.that(
        total.min() > 0.99,
        "more than 0.99 of the attention goes to the positions whose previous word is the current word",
        seen=f"{total.min():.2f} at position {query} of {where}; most, {most:.2f}, on {at}",
        expected=f"more than 0.99 on {found[query]}",
        likely="" if total.min() > 0.99 else _why_elsewhere(pattern, torch.tensor(words), share > 0),
    )
    uneven = (pattern / share - 1).abs().masked_fill(share == 0, 0).amax(1)
    query = old[int(uneven[old].argmax())]
    judge.that(
        uneven.max() < 0.05,
        "it attends to all these positions equally",
        seen=f"{[round(float(pattern[query, k]), 2) for k in found[query]]} on {found[query]}, {where}",
        likely="the score of a match should depend on nothing else than the match",
    )
    elsewhere = out[:, : 2 * V].abs().max()
    claim = "nothing is written but into the last dimensions, from 2 * d_vocab on"
    judge.that(elsewhere < 0.02, claim, seen=f"up to {elsewhere:.2f}, {where}", likely="where does W_O lead?")
    size = written.abs().amax(1)
    worst = max(new, key=lambda query: float(size[query]))
    likely = "resting reads something: what do W_V and W_O make of word 0?"
    if pattern[worst, 0] < 0.9:
        likely = "where nothing matches it averages over the row: give it a place to rest that has no value"
    elif written[worst, 0].abs() > 0.9 * size[worst]:
        likely = "it rests on word 0 and writes it: word 0 needs a value of zero"
    seen = f"up to {size[worst]:.2f} at position {worst} of {where}"
    judge.that(size[worst] < 0.02, "a word that is new writes nothing", seen=seen, likely=likely)
    written = written[old]
    gain = float((written * average).sum() / average.square().sum())
    likely = "values read the word that stands there, with weight one"
    if torch.allclose(written, own, atol=0.03) and not torch.allclose(average, own, atol=0.03):
        likely = "it writes the current word again: values read the word before, but should read the word there"
    elif written.abs().max() < 0.02:
        likely = "nothing is written: do W_V and W_O share their inner dimensions?"
    elif torch.allclose(written, gain * average, atol=0.03):
        likely = f"the right words, but {gain:.2g} times: together W_V and W_O should have weight one"
    judge.close(written, average, f"the successors' average, {where}", tol=0.02, likely=likely)


# 6.5 -------------------------------------------------------------------------------------------

Head = tuple[int, int]


def _keys_without(model: Transformer, tokens: Tensor, sender: Head, receiver: Head) -> Tensor:
    """Logits with the receiver's keys worked out anew, in float64, from a stream without what the sender wrote."""
    z, stream = hook_name("z", sender[0]), hook_name("resid_pre", receiver[0])
    _, cache = run_with_cache(model, tokens, [z, stream])
    said = (cache[z][:, :, sender[1]] @ model.get_parameter(f"blocks.{sender[0]}.attn.W_O")[sender[1]]).double()
    names = (f"blocks.{receiver[0]}.{name}" for name in ("ln1.w", "ln1.b", "attn.W_K", "attn.b_K"))
    w, b, W_K, b_K = (model.get_parameter(name).double() for name in names)
    normal = _norm(cache[stream].double() - said, w, b, model.cfg.eps)

    def put(k: Tensor, _: Any) -> None:  # batch pos head d_head
        k[:, :, receiver[1]] = (normal @ W_K[receiver[1]] + b_K[receiver[1]]).to(k)

    with hooked(model, [(hook_name("k", receiver[0]), put)]):
        return model(tokens)


def _wrong_routes(model: Transformer, tokens: Tensor, sender: Head, receiver: Head) -> Mistakes:
    """What other interventions than the one that was asked lead to."""
    layers, (layer, head) = range(model.cfg.n_layers), receiver
    heads = list(range(model.cfg.n_heads))
    _, cache = run_with_cache(model, tokens, [hook_name("result", at) for at in layers])
    before = functools.cache(lambda at: model(tokens, stop_at_layer=at))
    result, stream = cache["result", sender[0]], before(layer)
    said = result[:, :, sender[1]]
    b_O = model.get_parameter(f"blocks.{sender[0]}.attn.b_O")
    w, W_K = (model.get_parameter(f"blocks.{layer}.{name}") for name in ("ln1.w", "attn.W_K"))
    scale = (stream.var(-1, unbiased=False, keepdim=True) + model.cfg.eps).sqrt()

    def less(*what: Tensor, name: str = "k_input", at: Head = receiver, mine: list[int] | None = None) -> list[Tensor]:
        """Logits if each of these is taken away from the inputs `name` of the heads `mine`, or of the head `at`."""
        total, index = -torch.cat(what), torch.tensor(mine or [at[1]])
        each = total[:, :, None].expand(-1, -1, len(index), -1)
        hook = lambda x, _: x + total if x.ndim == 3 else x.index_add(2, index, each)  # noqa: E731  (beartype is slow)
        with hooked(model, [(hook_name(side, at[0]), hook) for side in name.split()]):
            logits = model(before(at[0]).repeat(len(what), 1, 1), start_at_layer=at[0])  # nothing changes below
        return list(logits.chunk(len(what)))

    qkv, everywhere = "q_input k_input v_input", "every head in queries, keys and values"
    yield f"all who read the stream lose it: {everywhere}, and all that comes after", less(said, name="resid_pre")[0]
    yield "all heads of the layer lose it in their keys: choose one on the axis of heads", less(said, mine=heads)[0]
    yield f"the whole layer loses it: {everywhere}", less(said, name=qkv, mine=heads)[0]
    with hooked(model, [(hook_name("attn_out", sender[0]), lambda x, hook: x - said)]):
        ablated, passed_on = model(tokens), stream - model(tokens, stop_at_layer=layer)
    yield "the sender is ablated, for all who read it", ablated
    variants = {
        "nothing was changed: does the model run in the `with` block, does the hook return a value?": 0 * said,
        "the keys are those of a run without the sender: they also lose what others made of it": passed_on,
        "the whole layer of the sender is taken away, with its other heads": result.sum(2) + b_O,
        "the bias b_O is subtracted too: it belongs to the layer, not to a head": said + b_O,
        "it is added: it should be subtracted": -said,
        "the keys see nothing but what the sender wrote: they should see all else": stream - said,
        "the keys see nothing at all: they should lose only what the sender wrote": stream,
        "only what differs from the mean over rows is taken away: take all of it": said - said.mean(0),
        **{
            f"the keys lose what L{i}H{h} wrote, not L{sender[0]}H{sender[1]}": cache["result", i][:, :, h]
            for i, h in [*((i, sender[1]) for i in layers), (sender[0], head)]
            if (i, h) != sender
        },
    }
    yield from zip(variants, less(*variants.values()), strict=True)
    normal = (said - said.mean(-1, keepdim=True)) / scale * w
    frozen, after = less(normal @ W_K[head], said @ W_K[head], name="k")
    yield "LayerNorm's scale is that of the whole stream: subtract before LayerNorm", frozen
    yield "it is subtracted after LayerNorm, which makes it another size", after
    yield "the queries lose it, not the keys", less(said, name="q_input")[0]
    yield "the values lose it, not the keys", less(said, name="v_input")[0]
    yield "queries and values of the head lose it too: its keys alone should", less(said, name=qkv)[0]
    yield "sender and receiver are exchanged", less(cache["result", layer][:, :, head], at=sender)[0]
    for i, h in [*((i, head) for i in layers), (layer, sender[1])]:
        if (i, h) != receiver:
            yield f"the keys of L{i}H{h} lose it, not those of L{layer}H{head}", less(said, at=(i, h))[0]


@exercise("In the course model, by intervention")
def keys_only(fn: Any, judge: Judge) -> None:
    models = [
        (_model(judge, n_heads=4, d_head=6), [((0, 3), (1, 0))]),
        (_model(judge, n_layers=3, attn_only=True, d_mlp=0), [((0, 1), (2, 0)), ((0, 1), (1, 1)), ((1, 0), (2, 2))]),
    ]
    reading = "what the sender wrote is one head of hook_result; the receiver's keys come from hook_k_input"
    for model, pairs in models:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for (sender, receiver), batch in zip(pairs, (3, 1, 2), strict=False):
            tokens = _tokens(judge, model, batch=batch, length=8)
            want = _keys_without(model, tokens, sender, receiver)
            got = judge.call(fn, model, tokens, sender, receiver)
            judge.that(not isinstance(got, tuple), "the logits are returned, and nothing else", seen="a tuple")
            changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
            judge.that(not changed, "no weights are edited: hooks leave them alone", seen=", ".join(changed))
            tidy = not model.attached and not any(p.requires_grad for p in model.parameters())
            claim = "no hook stays attached, as `with hooked(...)` sees to it, and no parameter asks for gradients"
            judge.that(tidy, claim, seen=", ".join(model.attached))
            got = judge.tensor(got, tuple(want.shape), "the logits")
            judge.close(
                got,
                want,
                f"keys of L{receiver[0]}H{receiver[1]} without L{sender[0]}H{sender[1]}, {model.cfg.n_layers} layers",
                likely=_which(got, want, _wrong_routes(model, tokens, sender, receiver), reading),
            )
    name = "blocks.0.attn.hook_z"
    with hooked(model, [(name, lambda z, hook: 2 * z)]):  # somebody else's hook has to survive, and to count
        want = _keys_without(model, tokens, (0, 2), (2, 1))
        got = judge.call(fn, model, tokens, (0, 2), (2, 1))
        left = {at: len(hooks) for at, hooks in model.attached.items()}
        likely = "`with hooked(...)` takes away its own hooks and no others"
        judge.that(left == {name: 1}, "a hook that was attached before is still there", seen=left, likely=likely)
        judge.close(got, want, "the keys of L2H1 without L0H2 while another hook is attached")


# 6.6 to 6.8: measured here, on rows of the check's own -----------------------------------------

STEPS = (0, 40, 80, 100, 120, 140, 160, 180, 200, 240, 320, 700)


def _numbers(judge: Judge, answer: Any, *names: str) -> dict[str, float]:
    _entries(judge, answer, *names)
    return {name: float(_number(judge, answer[name], name)) for name in names}


def _random_rows(rows: int, period: int, d_vocab: int) -> Tensor:
    """Repeated random words, after word 0; by numpy's generator, so that no learner's seed gives the same."""
    words = torch.from_numpy(np.random.default_rng(6).integers(1, d_vocab, (rows, period)))
    return torch.cat([torch.zeros(rows, 1, dtype=torch.int64), words, words], dim=1)


def _patterns(model: Transformer, tokens: Tensor) -> Tensor:
    """All attention patterns, [layer, batch, head, query, key]."""
    _, cache = run_with_cache(model, tokens, lambda name: name.endswith("pattern"))
    return torch.stack([cache["pattern", layer] for layer in range(model.cfg.n_layers)])


def _to_match(patterns: Tensor, tokens: Tensor, shift: int = 1) -> Tensor:
    """The attention to all places `shift` after a match, the mean over queries that have one, [layer, head]."""
    marks = torch.zeros(len(tokens), *patterns.shape[-2:])
    for mark, row in zip(marks, tokens.tolist(), strict=True):
        pairs = [(query, key) for query, keys in enumerate(_after(row, shift)) for key in keys or ()]
        mark[[query for query, _ in pairs], [key for _, key in pairs]] = 1
    return torch.einsum("lbhqk,bqk->lh", patterns, marks) / marks.any(-1).sum()


def _losses(model: Transformer, tokens: Tensor) -> Tensor:
    """The mean loss of each token but the first."""
    return -model(tokens)[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0].mean(0)


@functools.cache
def _growth() -> dict[str, Tensor]:
    """The best previous-token and induction score of each layer at each step, [layer, step]."""
    tokens, found = _random_rows(200, 23, 49), []
    for step in STEPS:
        patterns = _patterns(load("phrases-2l", step=None if step == STEPS[-1] else step), tokens)
        previous = patterns.diagonal(-1, dim1=-2, dim2=-1)[..., 1:].mean(dim=(1, 3))
        found.append(torch.stack([previous, _to_match(patterns, tokens)]).amax(2))
    return dict(zip(("previous", "induction"), torch.stack(found, dim=2), strict=True))


def _nearest(value: float, known: dict[str, float], within: float) -> str:
    """The mistake that leads nearest to a value, if any comes near."""
    text = min(known, key=lambda text: abs(known[text] - value))
    return text if abs(known[text] - value) < within else ""


def _half_way(scores: Tensor, at: int, margin: float = 0.03) -> bool:
    """Whether the scores first reach half of the last one at this place, or might with other rows."""
    share = (scores / scores[-1]).tolist()
    return max(share[:at], default=0.0) < 0.5 + margin and share[at] >= 0.5 - margin


@exercise("A model learns it")
def phase(answer: Any, judge: Judge) -> None:
    if isinstance(answer, dict):  # None is what `load` calls the end
        answer = {name: STEPS[-1] if step is None else step for name, step in answer.items()}
    found, table, end = _numbers(judge, answer, "previous", "induction"), _growth(), len(STEPS) - 1
    for layer, (name, step) in enumerate(found.items()):
        index = step in range(end) and _half_way(table[name][layer], int(step))
        likely = "an index into the list of steps" if index else ""
        judge.that(step in STEPS, f"{name}: a step at which the model was kept", seen=f"{step:g}", likely=likely)
    places = [STEPS.index(int(step)) for step in found.values()]
    exchanged = all(_half_way(table[name][1 - i], places[i]) for i, name in enumerate(("induction", "previous")))
    for layer, (name, at) in enumerate(zip(found, places, strict=True)):
        scores, other = table[name][layer], table[name][1 - layer]
        likely = "collect the best score at each step in a list, print it, and compare with half of its last entry"
        if exchanged:
            likely = "the two are exchanged"
        elif at < end and scores[at + 1] >= scores[-1] / 2 > scores[: at + 1].max():
            likely = "the last step below half (or rows with a shorter period than 23, on which all is easier)"
        elif at in (end, int(scores.argmax())):
            likely = "where it is highest, or the end; asked is where it first reaches half of what it is at the end"
        elif _half_way(other, at):
            likely = f"these are the scores of layer {1 - layer}: row {layer} of the table is layer {layer}"
        elif scores[at] >= 0.5:
            likely = "half of what it is at the end is asked, not a score of 0.5, and the first time"
        judge.that(
            _half_way(scores, at),
            f"the step at which the best {name} score of layer {layer} first reaches half of its last value",
            seen=f"at {STEPS[at]} it is {scores[at]:.2f}, at the step before {scores[max(at - 1, 0)]:.2f}",
            expected=f"at first {scores[-1] / 2:.2f} or more",
            likely=likely,
        )


@functools.cache
def _by_offset(seed: int, period: int = 20) -> Tensor:
    """How much attention heads give to the place 0, 1, ..., 12 after the match, [layer, head, offset]."""
    tokens = _random_rows(200, period, 49)
    patterns = _patterns(load("distances-2l", seed=seed), tokens)
    return torch.stack([_to_match(patterns, tokens, shift) for shift in range(13)], dim=2)


@exercise("The same job at another offset")
def offset(answer: Any, judge: Judge) -> None:
    found, table = _numbers(judge, answer, "offset", "attention", "usual"), _by_offset(2)
    best, given = table[1].amax(0), found["attention"]
    place, attention, usual = int(best.argmax()), float(best.max()), float(best[1])
    slips = {
        "the highest of layer 0: layer 1 is asked": float(table[0].max()),
        "the mean over heads: the highest is asked": float(table[1, :, place].mean()),
        "the rows here have a shorter period: take 20": float(_by_offset(2, 11)[1].max()),
        "this is the usual score, at offset 1": usual,
        **{f"the model with seed 2 is asked, this is seed {seed}": float(_by_offset(seed)[1].max()) for seed in (0, 1)},
    }
    slip = _nearest(given, slips, 0.015)
    reasons: dict[float, str] = {
        20 - place: "so far is it before the query: asked is how far after the match, which is 20 before the query",
        place - 1: "one off: the match itself is offset 0, the place right after it is 1",
        place + 1: "one off: the match itself is offset 0, the place right after it is 1",
        1: "this is where an induction head usually looks: compare the attention at all offsets",
    }
    reason = slip if "layer 0" in slip else reasons.get(found["offset"], "where is the highest attention of layer 1?")
    judge.that(found["offset"] == place, "the offset with most attention", seen=f"{found['offset']:g}", likely=reason)
    judge.that(
        abs(given - attention) < 0.025,
        "the highest attention of a head of layer 1 to that place",
        seen=f"{given:.3f}",
        expected=f"{attention:.3f}, give or take 0.025 for your choice of rows",
        likely=slip,
    )
    slips = {"this is the attention at the other offset: the usual score is that at offset 1": attention}
    judge.that(
        abs(found["usual"] - usual) < 0.02,
        "the highest usual score of a head of layer 1",
        seen=f"{found['usual']:.3f}",
        expected=f"{usual:.3f}, give or take 0.02 for your choice of rows",
        likely=_nearest(found["usual"], slips, 0.1),
    )


@functools.cache
def _without_strongest() -> list[Tensor]:
    """The loss of each token of repeated rows without the 0, 1, 2, ... strongest of layer 1, until it exceeds 1."""
    model = load("tinyworld", seed=1)
    tokens = _random_rows(200, 31, model.cfg.d_vocab)
    order = _to_match(_patterns(model, tokens), tokens)[1].argsort(descending=True).tolist()
    _, cache = run_with_cache(model, tokens, hook_name("z", 1))
    mean, losses = cache["z", 1].mean(0), []
    for n in range(7):

        def without(z: Tensor, _: Any, heads: list[int] = order[:n]) -> None:
            z[:, :, heads] = mean[:, heads]

        with hooked(model, [(hook_name("z", 1), without)]):
            losses.append(_losses(model, tokens))
        if losses[-1][32:].mean() > 1:
            break
    return losses


@exercise("In the course model, by intervention")
def redundant(answer: Any, judge: Judge) -> None:
    if isinstance(answer, dict) and answer.get("heads", 0) is None:
        judge.fail("how many have to go", seen="None", likely="take them away together, not one at a time")
    found, (full, *without) = _numbers(judge, answer, "without_one", "heads"), _without_strongest()
    one, n, want = without[0], len(without), float(without[0][32:].mean())
    known = {
        "the first word of the repetition, which nobody can know, is in the mean": float(one[31:].mean()),
        "this is the mean over the whole row: the repetition is asked": float(one.mean()),
        "this is the first half, of random words: the repetition is asked": float(one[:31].mean()),
        "two are gone here: begin with one": float(without[1][32:].mean()),
        "this is by how much the loss rises: the loss itself is asked": want - float(full[32:].mean()),
    }
    judge.that(
        abs(found["without_one"] - want) < 0.07,
        "the mean loss of the repetition without the strongest head",
        seen=f"{found['without_one']:.3f}",
        expected=f"{want:.3f}, give or take 0.07 for your choice of rows",
        likely=_nearest(found["without_one"], known, 0.07),
    )
    reasons: dict[float, str] = {
        n - 1: "so many can go while the loss stays below 1 (or zeros were put in their place, not their mean)",
        1: "is the first half in the mean, which nobody can know? Take the repetition alone",
    }
    likely = reasons.get(found["heads"], "the strongest alone, then the two strongest together, then three")
    if found["heads"] in (0, 6):
        likely = "take them away together, not one at a time: then the loss never exceeds 1"
    judge.that(found["heads"] == n, "so many have to go until the loss exceeds 1", seen=found["heads"], likely=likely)


# 6.9 -------------------------------------------------------------------------------------------

STATEMENTS = {
    "a": (False, "the score says where it looks: what it copies, and whether that matters, are two more questions"),
    "b": (True, "at layer 0 a position holds its own word and its place, nothing else"),
    "c": (False, "others may make up for it: take them away together"),
    "d": (False, "its heads may look further than right after the match, or go by distances: look at every place"),
    "e": (True, "knowing which words are about is learning from context too"),
    "f": (True, "that is what a cut of one route shows: the other two routes do not matter, this one does"),
    "g": (False, "by ablation in small attention-only models; in large ones the two appear together"),
}


@exercise("What is known about large models")
def statements(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)
