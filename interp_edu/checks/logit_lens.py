"""Checks of chapter 7's exercises. Each stands on its own: hand-worked cases, maths in float64, measured truths."""

import functools
import math
import random
from typing import Any

import torch
from torch import Tensor

from interp_edu import tinyworld
from interp_edu.checks.attention_heads import Reasons, Shape, _entries, _first, _number, _shaped
from interp_edu.checks.core import Judge, exercise
from interp_edu.checks.induction_heads import Mistakes, _numbers, _which
from interp_edu.checks.transformer import NORM_MISTAKES, _a_head, _matrices, _model, _norm, _size, _tokens
from interp_edu.hooks import hooked, run_with_cache
from interp_edu.pretrained import load

Named = dict[str, Tensor]


def _lens_mistakes(x: Tensor, w: Tensor, b: Tensor, W_U: Tensor, b_U: Tensor) -> Named:
    """What mistakes make of the lens's logits."""
    x, w, b, W_U, b_U = (t.double() for t in (x, w, b, W_U, b_U))
    scale = (x[-1].var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    across = _norm(x.transpose(1, 2), w, b, 1e-5, "positions").transpose(1, 2)
    norms = {text: _norm(x, w, b, 1e-5, name) for name, text in NORM_MISTAKES.items() if name != "std plus eps"}
    streams = {
        "there is no LayerNorm": x,
        "one scale for all layers, the last stream's: each has its own": (x - x.mean(-1, True)) / scale * w + b,
        "normalised over positions: each is normalised for itself, over d_model": across,
        "normalised over layers: each stream for itself, over d_model": norms.pop(NORM_MISTAKES["batch"]),
        "normalised over the batch: each stream for itself, over d_model": norms.pop(NORM_MISTAKES["positions"]),
        **norms,
    }
    right = _norm(x, w, b, 1e-5) @ W_U
    return {
        **{text: stream @ W_U + b_U for text, stream in streams.items()},
        "b_U is missing": right,
        "these are probabilities: logits are asked for": (right + b_U).softmax(-1),
        "these are log probabilities: logits are asked for": (right + b_U).log_softmax(-1),
    }


@exercise("Reading the stream early")
def lens_logits(fn: Any, judge: Judge) -> None:
    # (-1, 1, 1, -1) has mean 0 and variance 1; w doubles the first number, b adds 3 to the last: (-2, 1, 1, 2).
    x = 100 + 500 * torch.tensor([[[[-1.0, 1, 1, -1]]], [[[-2, 2, 2, -2]]]])
    W_U = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 5]])
    given = [x, torch.tensor([2.0, 1, 1, 1]), torch.tensor([0.0, 0, 0, 3]), W_U, torch.tensor([0.0, 10, 0])]
    want = torch.tensor([-2.0, 11, 10]).expand(2, 1, 1, 3)
    cases = [("two streams that differ in size only, worked by hand", given, want)]
    for layers, batch, pos, d, V in ((3, 2, 5, 7, 11), (5, 1, 4, 9, 6), (2, 3, 1, 6, 4), (4, 2, 9, 40, 70)):
        x = judge.randn(layers, batch, pos, d) + 3 * judge.randn(layers, batch, pos, 1)
        x *= torch.arange(1, layers + 1)[:, None, None, None]
        x[0] = 3e-3 * judge.randn(batch, pos, d)  # so short that epsilon counts
        given = [x, judge.randn(d), judge.randn(d), judge.randn(d, V), judge.randn(V)]
        want = _norm(x, given[1], given[2], 1e-5) @ given[3].double() + given[4].double()
        cases.append((f"{layers} layers, batch of {batch}, {pos} positions", given, want))
    for case, given, want in cases:
        layers, batch, pos, V = want.shape
        known: dict[Shape, str] = {(batch, pos, V): "this is one layer of several"}
        known |= {(layers, batch, V): "this is one position", given[0].shape: "the unembedding is missing"}
        got = _shaped(judge, judge.call(fn, *given), tuple(want.shape), known)
        judge.close(got, want, case, mistakes=_lens_mistakes(*given), tol=2e-5)


def _kl_along(logits: Tensor, axis: int = -1) -> Tensor:
    log_p = logits.double().log_softmax(axis)
    return (log_p[-1].exp() * (log_p[-1] - log_p)).sum(-1)


def _kl_mistakes(logits: Tensor) -> Named:
    """What mistakes make of KL(final || layer)."""
    log_p = logits.double().log_softmax(-1)
    p, final, q, first = log_p.exp(), log_p[-1], log_p[-1].exp(), log_p[0]
    kl, turned = _kl_along(logits), (p * (log_p - final)).sum(-1)
    return {
        "this is KL(layer || final): the final distribution comes first, and weighs the sum": turned,
        "the sign: KL is never negative": -kl,
        "the sign, and this is KL(layer || final): the final distribution comes first": -turned,
        "this is symmetric, the mean of both directions: one is asked for": (kl + turned) / 2,
        "these are bits: nats are asked for, with the natural logarithm": kl / math.log(2),
        "this is the mean over the vocabulary: the sum is asked for": kl / logits.shape[-1],
        "this is the cross-entropy: the final distribution's own entropy has to go": -(q * log_p).sum(-1),
        "the first layer is taken for the final one: that is the last": (first.exp() * (first - log_p)).sum(-1),
        "the final probabilities are missing as weights": (final - log_p).sum(-1),
        "logits are no log probabilities: take log_softmax first": (q * (logits[-1] - logits)).sum(-1),
        "the softmax runs over positions: it belongs to the vocabulary": _kl_along(logits, 2),
    }


@exercise("Reading the stream early")
def kl_to_final(fn: Any, judge: Judge) -> None:
    hand = torch.tensor([[1.0, 1], [3, 1]]).log()[:, None, None] + 3 * judge.randn(2, 1, 1, 1)
    want = torch.tensor([0.75 * math.log(3) - math.log(2), 0.0]).reshape(2, 1, 1)
    cases = [("final (3/4, 1/4), and a layer that tosses a coin, by hand", hand, want)]
    for layers, batch, pos, V in ((4, 2, 5, 9), (3, 1, 7, 13), (2, 3, 1, 6), (6, 2, 8, 120)):
        logits = 2 * judge.randn(layers, batch, pos, V) + 5 * judge.randn(layers, batch, pos, 1)
        cases.append((f"{layers} layers, batch of {batch}, {pos} positions", logits, _kl_along(logits)))
    loud = 200 * judge.randn(3, 2, 4, 7).sign()
    loud[1:, ..., 0], loud[1:, ..., 1], loud[0, ..., 0], loud[0, ..., 1] = 200, -200, -200, 200
    cases.append(("logits of 200 and -200", loud, _kl_along(loud)))
    for case, logits, want in cases:
        layers, batch, pos, V = logits.shape
        got = judge.call(fn, logits)
        finite = not isinstance(got, Tensor) or got.isfinite().all()
        likely = "a probability underflows to 0, and its logarithm is minus infinity: use log_softmax throughout"
        judge.that(finite, f"{case}: numbers come out", seen="NaN or infinity", likely=likely)
        known: dict[Shape, str] = {
            (layers,): "one number for each layer and position is asked for",
            (layers - 1, batch, pos): "the last layer belongs to it too, with a distance of zero",
            **dict.fromkeys((logits.shape, (layers, batch, V)), "the sum runs over the vocabulary"),
        }
        got = _shaped(judge, got, (layers, batch, pos), known)
        likely = "a small number added before the logarithm, or a clamp, hides the distance" if logits is loud else ""
        judge.close(got, want, f"KL(final || layer), {case}", mistakes=_kl_mistakes(logits), tol=1e-5, likely=likely)


CONTRIBUTION_MISTAKES = {
    "own scale": "each part has a LayerNorm of its own: they share one scale, that of the whole stream",
    "own norm": "each part has a LayerNorm of its own, and gets b as well: they share one scale, and b is a row apart",
    "not centred": "the mean is not subtracted: LayerNorm subtracts it, and so part by part",
    "no w": "w is missing: it scales the centred stream",
    "zero b": "what b contributes is not zero: it is read by the same difference of columns of W_U",
    "b w": "b is scaled by w: LayerNorm adds it after scaling",
    "zero b_U": "what b_U contributes is not zero: it is b_U[right] - b_U[wrong]",
    "b_U turned": "the sign of b_U's row: right minus wrong",
    "turned": "this is wrong minus right",
    "right": "these are contributions to the logit of `right` alone: subtract those to `wrong`",
    "unbiased": "the variance is divided by d - 1: LayerNorm's by d, correction=0",
    "first": "the scale is that of the first part: LayerNorm divides by that of the sum of all parts",
    "no scale": "LayerNorm's division is missing",
    "no eps": "epsilon is missing: it stands under the root, beside the variance",
    "exchanged": "the last two rows are exchanged: first b, then b_U",
    "in front": "the two constants come last, after the parts",
}


def _contributions(parts: Tensor, rest: list[Tensor], right: Tensor, wrong: Tensor, mistake: str = "") -> Tensor:
    """Direct contributions, [part + 2, batch], or what a mistake makes of them. `rest` is w, b, W_U and b_U."""
    (x, w, b, W_U, b_U), keep = (t.double() for t in (parts, *rest)), mistake != "right"
    right, wrong = (wrong, right) if mistake == "turned" else (right, wrong)
    u, out = W_U.T[right] - keep * W_U.T[wrong], b_U[right] - keep * b_U[wrong]
    source = {"own scale": x, "own norm": x, "first": x[0]}.get(mistake, x.sum(0))
    scale = (source.var(-1, correction=mistake == "unbiased") + 1e-5 * (mistake != "no eps")).sqrt()
    centred = x if mistake == "not centred" else x - x.mean(-1, keepdim=True)
    each = (centred * (1 if mistake == "no w" else w) * u).sum(-1) / (1 if mistake == "no scale" else scale)
    ln = u @ (b * w if mistake == "b w" else b)
    each = each + ln if mistake == "own norm" else each
    ln, out = ln * (mistake != "zero b"), out * {"zero b_U": 0, "b_U turned": -1}.get(mistake, 1)
    rows = {"exchanged": [each, out[None], ln[None]], "in front": [ln[None], out[None], each]}
    return torch.cat(rows.get(mistake, [each, ln[None], out[None]]))


@exercise("Who said it: direct logit attribution")
def contributions(fn: Any, judge: Judge) -> None:
    # The stream is (0, 0, 4, 4), with mean 2 and scale 2, and what reads it, w u, is (1, 0, -1, 4).
    parts, W_U = torch.tensor([[[0.0, 0, 4, 2]], [[0, 0, 0, 2]]]), torch.tensor([[1.0, 0], [0, 0], [0, 1], [2, 0]])
    rest = [torch.tensor([1.0, 1, 1, 2]), torch.tensor([10.0, 0, 0, 0]), W_U, torch.tensor([7.0, 4])]
    want = torch.tensor([[-1.0], [3], [10], [3]])
    cases = [("two parts, worked by hand", parts, rest, torch.tensor([0]), torch.tensor([1]), want)]
    for n, batch, d, V, size in ((4, 3, 7, 11, 1.0), (6, 1, 9, 5, 1.0), (3, 5, 8, 4, 2e-3), (26, 4, 40, 70, 1.0)):
        parts = size * (2 * judge.randn(n, batch, d) + 4 * judge.randn(n, batch, 1) * (size == 1))
        rest = [judge.randn(d), judge.randn(d), judge.randn(d, V), judge.randn(V)]
        right, wrong = torch.stack([torch.randperm(V, generator=judge.generator)[:2] for _ in range(batch)], dim=1)
        case = f"{n} parts, batch of {batch}{', in a very short stream' * (size < 1)}"
        cases.append((case, parts, rest, right, wrong, _contributions(parts, rest, right, wrong)))
    for case, parts, rest, right, wrong, want in cases:
        n, batch, _ = parts.shape
        known: dict[Shape, str] = {
            **dict.fromkeys(((n, batch), (n + 1, batch)), "a row is missing: b and b_U have one each, after the parts"),
            (batch, n + 2): "the order of the axes is [part + 2, batch]",
            (n + 2, batch, batch): "every row is read with every other's words: pair them, as (x * u).sum(-1) does",
        }
        got = _shaped(judge, judge.call(fn, parts, *rest, right, wrong), (n + 2, batch), known)
        named = ((text, _contributions(parts, rest, right, wrong, m)) for m, text in CONTRIBUTION_MISTAKES.items())
        likely = _which(got, want, named)
        logits = (_norm(parts.sum(0), rest[0], rest[1], 1e-5) @ rest[2].double() + rest[3].double()).T
        difference = (logits[right] - logits[wrong]).diagonal()
        judge.close(got.sum(0), difference, f"{case}: the sum over rows is the logit difference", likely=likely)
        judge.close(got, want, f"{case}: what each contributes", likely=likely or "it adds up, but to other parts")


SOURCE_MISTAKES = {
    "bhj,bkhe,hed,bd->hbk": "the pattern is not used: each value counts with its weight",
    "bhk,bkhe,ged,bd->hbk": "W_O of all heads is summed: each head has its own",
    "bhk,bkge,ged,bd->hbk": "the values of all heads are summed: each head has its own",
}


def _source_mistakes(given: list[Tensor]) -> Mistakes:
    """What mistakes make of contributions by source."""
    A, v, W_O, direction = given
    want = _by_source(A, v, W_O, direction)
    for rule, text in SOURCE_MISTAKES.items():
        yield text, torch.einsum(rule, A, v, W_O, direction)
    for W in (W_O.roll(1, 0), W_O.flip(0), W_O[:1].expand_as(W_O)):
        yield "W_O of another head is used", _by_source(A, v, W, direction)
    yield "each row of the batch has a direction of its own", _by_source(A, v, W_O, direction[:1])
    yield "each row of the batch has a pattern of its own", _by_source(A[:1], v, W_O, direction)
    yield "a softmax is taken of the pattern, which has had one", _by_source(A.softmax(-1), v, W_O, direction)
    yield "divided by the number of keys: a sum, not a mean", want / A.shape[2]
    yield "the direction is made a unit vector: its length counts", want / direction.norm(dim=-1)[:, None]
    yield "absolute values: opposite signs are the point", want.abs()


def _by_source(A: Tensor, v: Tensor, W_O: Tensor, direction: Tensor) -> Tensor:
    vectors = torch.stack([v[:, :, h] @ W_O[h] for h in range(len(W_O))])  # head batch key d_model
    return A.transpose(0, 1) * (vectors * direction[:, None]).sum(-1)


@exercise("And from where")
def by_source(fn: Any, judge: Judge) -> None:
    for B, H, n, e, d in ((2, 3, 5, 4, 7), (1, 2, 6, 3, 8), (4, 1, 3, 2, 5), (3, 5, 1, 4, 9), (3, 6, 20, 7, 40)):
        given = [(1.5 * judge.randn(B, H, n)).softmax(-1), judge.randn(B, n, H, e), judge.randn(H, e, d)]
        given.append(judge.randn(B, d))
        exact = [t.double() for t in given]
        want = _by_source(*exact)
        orders = ((B, H, n), (B, n, H), (H, n, B), (n, H, B), (n, B, H))
        known: dict[Shape, str] = {
            **dict.fromkeys(orders, "the order of the axes is [head, batch, key]"),
            **dict.fromkeys(((H, B), (B, H)), "this is summed over keys: every position is asked for"),
            **dict.fromkeys(((H, B, n, d), (B, H, n, d)), "these are vectors: take their product with the direction"),
        }
        got = _shaped(judge, judge.call(fn, *given), (H, B, n), known)
        likely = _which(got, want, _source_mistakes(exact))
        judge.close(got, want, f"{H} heads, {n} keys, batch of {B}: each key's share in each head", likely=likely)


def _next_word_mistakes(p: Tensor, raw: Tensor, tokens: Tensor) -> Named:
    """What mistakes make of mean probabilities, from those at all layers; `raw` are those without LayerNorm."""
    n, ahead, own = tokens.shape[1], _of_word(p, tokens, 1), _of_word(p, tokens, 0)
    around = p.gather(-1, tokens.roll(-1, 1).expand(len(p), -1, -1)[..., None])[..., 0]
    means = {
        "this is still the probability of the word that stands there: p predicts the one at p + 1": own[:, :, 1:],
        "this is the probability of each position's own word: position p predicts the one at p + 1": own,
        "shifted the wrong way: this is the probability of the word before": _of_word(p, tokens, -1),
        "the last position counts too, against the row's first word: it has no next word": around,
        "LayerNorm is missing before the unembedding": _of_word(raw, tokens, 1),
        "shifted by two: position p predicts the token at p + 1": _of_word(p, tokens, 2) if n > 2 else ahead,
        "this is the mean of logarithms: probabilities are averaged": ahead.log(),
        "this is a loss: the mean probability is asked for": -ahead.log(),
    }
    return {text: value.mean((1, 2)) for text, value in means.items()} | {
        "this is exp of the mean logarithm: probabilities are averaged": ahead.log().mean((1, 2)).exp(),
        "this is a sum: the mean is asked for": ahead.sum((1, 2)),
        "divided by all positions: the last one has no next word": ahead.sum((1, 2)) / tokens.numel(),
    }


def _of_word(p: Tensor, tokens: Tensor, shift: int) -> Tensor:
    """The probability, at each position that has one, of the token `shift` further on."""
    n = tokens.shape[1]
    index = tokens[:, max(shift, 0) : n + min(shift, 0)].expand(len(p), -1, -1)[..., None]
    return p[:, :, max(-shift, 0) : n - max(shift, 0)].gather(-1, index)[..., 0]


@exercise("Reading the stream early")
def next_word(fn: Any, judge: Judge) -> None:
    bare = {"attn_only": True, "d_mlp": 0}
    for change, batch, length in (({}, 3, 7), (bare, 4, 12), ({"n_layers": 1}, 1, 2)):
        model = _model(judge, **change)
        tokens, layers = _tokens(judge, model, batch, length), model.cfg.n_layers
        before = {name: value.clone() for name, value in model.state_dict().items()}
        W = {name: value.double() for name, value in before.items()}
        others = [("blocks.0.attn.hook_z", lambda z, hook: 1.5 * z)] if change is bare else []
        case = f"{layers} layer(s){', attention only' * (change is bare)}, batch of {batch}"
        with hooked(model, others):  # somebody else's hook has to survive, and to count
            x = torch.stack([model(tokens, stop_at_layer=i) for i in range(layers + 1)]).double()
            logits = model(tokens).double()
            got = judge.call(fn, model, tokens)
            left = {name: len(hooks) for name, hooks in model.attached.items() if hooks}
        normal = _norm(x, W["ln_final.w"], W["ln_final.b"], 1e-5)
        p, raw = ((stream @ W["unembed.W_U"] + W["unembed.b_U"]).softmax(-1) for stream in (normal, x))
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        changed += [f"requires_grad of {name}" for name, value in model.named_parameters() if value.requires_grad]
        changed += ["hooks"] * (left != {name: 1 for name, _ in others})
        why = "leave the weights alone, and hooks too: `with hooked(...)` and run_with_cache take away their own only"
        judge.that(not changed, "the model is as it was afterwards", seen=f"{', '.join(changed)} changed", likely=why)
        known: dict[Shape, str] = {
            (layers,): "one entry for the stream before each layer, and one for that after the last"
        }
        got = _shaped(judge, got, (layers + 1,), known)
        want, likely = _of_word(p, tokens, 1).mean((1, 2)), ""
        if not torch.allclose(got, want, atol=1e-6):
            named = _next_word_mistakes(p, raw, tokens).items()
            likely = next((text for text, value in named if torch.allclose(got, value, rtol=1e-3, atol=1e-6)), "")
        own = _of_word(logits[None].softmax(-1), tokens, 1).mean()
        judge.close(got[-1], own, f"{case}: the last entry is the model's own", likely=likely, tol=1e-5)
        judge.close(got, want, f"{case}: every layer", likely=likely, tol=1e-5)


@exercise("A tuned lens")
def translator(fn: Any, judge: Judge) -> None:
    cases = [("a turn in the plane", torch.tensor([[0.6, 0.8], [-0.8, 0.6]]), torch.tensor([3.0, 5]))]
    for d, sign in ((3, 1), (_size(judge, 4, 7), -1), (12, -1), (_size(judge, 8, 11), 1)):
        R = torch.linalg.qr(judge.randn(d, d))[0]
        R[0] *= sign * torch.linalg.det(R).sign()
        cases.append((f"{d} dimensions{', with a reflection' * (sign < 0)}", R, 2 * judge.randn(d)))
    for case, R, c in cases:
        got = _matrices(judge, judge.call(fn, R, c), {"A": R.shape, "b": c.shape})
        A, b, R, c, one = got["A"], got["b"], R.double(), c.double(), torch.eye(len(c), dtype=torch.float64)
        wrong_A = {
            "the lens adds h by itself, so the identity has to be taken away from R.T": R.T,
            "A leads from f to h, not back: R.T undoes R": R - one,
            "A leads from f to h: R.T undoes R, and the identity has to be taken away": R,
            "the sign of A: R.T minus the identity": one - R.T,
        }
        wrong_b = {
            "b = -c forgets that what comes out is turned: the constant is turned with it": -c,
            "b = c: the constant is turned back by R.T, and taken away": c,
            "the sign of b: the constant is taken away": c @ R.T,
            "b is -c R: the constant is turned back, by R.T (R @ c is the same as c @ R.T)": -c @ R,
            "b is missing: the constant has to go": torch.zeros_like(c),
        }
        likely = _which(A, R.T - one, iter(wrong_A.items())) or _which(b, -c @ R.T, iter(wrong_b.items()))
        f = judge.randn(9, len(c)).double() * torch.arange(9)[:, None]
        h, likely = f @ R + c, likely or "solve h = f R + c for f, and take h away"
        judge.close(h + h @ A + b, f, f"{case}: h + h A + b is f", likely=likely)


@functools.cache
def _sentences() -> tuple[Tensor, dict[str, Tensor]]:
    """300 indirect-object sentences: tokens [row, pos], and the positions of their roles."""
    rng, tokenizer = random.Random(20240607), tinyworld.TOKENIZER
    found = [tinyworld.indirect_object(rng) for _ in range(300)]
    rows = [[0, *(tokenizer.id(word) for word in s.words)] for s in found]
    tokens = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    return tokens, {role: torch.tensor([s.roles[role] + 1 for s in found]) for role in ("END", "IO", "S1", "S2")}


@functools.cache
def _taken(seed: int, how: str = "") -> Tensor:
    """What heads contribute to the logit difference at END, by source, [layer, head, row, key]; or by a slip."""
    model, (tokens, at) = load("tinyworld", seed=seed), _sentences()
    rows, p = torch.arange(len(tokens)), model.state_dict()
    end = torch.full_like(rows, tokens.shape[1] - 1) if how == "last" else at["END"]
    last, wanted = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", ("hook_pattern", "hook_v")
    _, cache = run_with_cache(model, tokens, lambda name: name == last or name.endswith(wanted))
    u = p["unembed.W_U"].T[tokens[rows, at["IO"]]]
    u = u if how == "one word" else u - p["unembed.W_U"].T[tokens[rows, at["S1"]]]
    u = u if how == "unfolded" else u * p["ln_final.w"]
    u = u - u.mean(-1, keepdim=True)
    u = u if how == "unscaled" else u / (cache[last][rows, end].var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    found = []
    for layer in range(model.cfg.n_layers):
        reads = torch.einsum("hed,bd->bhe", p[f"blocks.{layer}.attn.W_O"], u)
        worth = torch.einsum("bkhe,bhe->hbk", cache["v", layer], reads)
        found.append(worth * cache["pattern", layer][rows, :, end].transpose(0, 1))
    return torch.stack(found)


SLIPS = {
    "last": "this is the last position of the padded rows: each row has its own END",
    "one word": "this is IO's logit alone: its difference to the repeated name's is asked for",
    "unscaled": "the last LayerNorm's division is missing",
    "unfolded": "the last LayerNorm's w is missing",
}


def _three(taken: Tensor, shift: int = 0, repeated: str = "S1") -> Tensor:
    """What heads, [head, row, key], contribute together, from IO, and from the repeated name: means over rows."""
    at, rows = _sentences()[1], torch.arange(taken.shape[1])
    parts = [taken.sum(2), *(taken[:, rows, at[role] + shift] for role in ("IO", repeated))]
    return torch.stack([part.sum(0).mean() for part in parts])


@functools.cache
def _hidden_slips() -> Named:
    truth, own = _three(_taken(2)[1]), _taken(2)
    return {
        "the sign: IO minus the repeated name": -truth,
        "from_io and from_s1 are exchanged": truth[[0, 2, 1]],
        "what is taken from S1 speaks for the repeated name: it is negative": truth * torch.tensor([1, 1, -1]),
        "one position too early: the row's first token stands before the words": _three(own[1], -1),
        "one position too late: `sentences` has counted the row's first token already": _three(own[1], 1),
        "this is S2: the repeated name's first place is asked for": _three(own[1], repeated="S2"),
        "this is the mean over the six heads: together they contribute their sum": truth / 6,
        **{f"this is layer {i}: layer 1 is asked for, counted from 0": _three(own[i]) for i in (0, 2, 3)},
        **{f"this is the model of seed {i}: take seed 2": _three(_taken(i)[1]) for i in (0, 1)},
        **{f"this is head {h} alone: all six are asked for": _three(own[1, h : h + 1]) for h in range(6)},
        **{text: _three(_taken(2, how)[1]) for how, text in SLIPS.items()},
    }


@exercise("And from where")
def hidden(answer: Any, judge: Judge) -> None:
    names, likely, within = ("together", "from_io", "from_s1"), "", 0.7  # means of 100 sentences spread by 0.12
    numbers, truth = _numbers(judge, answer, *names), _three(_taken(2)[1])
    given = torch.tensor([numbers[name] for name in names])
    if ((given - truth).abs() > within).any():
        gaps = {text: ((given - t).abs() / (0.05 * t.abs() + 0.25)).max() for text, t in _hidden_slips().items()}
        nearest = min(gaps, key=lambda text: float(gaps[text]))
        likely = nearest if gaps[nearest] < 2 else "with seed 2, by_source(...)[1], summed over heads, mean over rows"
    for name, value, want in zip(names, given.tolist(), truth.tolist(), strict=True):
        claim, there = f"{name}: what the heads of layer 1 contribute", f"{want:.2f}, give or take {within}"
        judge.that(abs(value - want) <= within, claim, seen=value, expected=there, likely=likely)


@functools.cache
def _fall(layer: int, head: int) -> tuple[float, float]:
    """The mean logit difference of seed 1, and its fall with a head's z replaced by its mean at END."""
    model, (tokens, at) = load("tinyworld", seed=1), _sentences()
    rows, end = torch.arange(len(tokens)), at["END"]

    def replace(z: Tensor, _: Any) -> None:
        z[rows, end, head] = z[rows, end, head].mean(0)

    def difference() -> float:
        logits = model(tokens)[rows, end]
        return float((logits[rows, tokens[rows, at["IO"]]] - logits[rows, tokens[rows, at["S1"]]]).mean())

    full = difference()
    with hooked(model, [(f"blocks.{layer}.attn.hook_z", replace)]):
        return full, full - difference()


@exercise("Direct is not total")
def effect(answer: Any, judge: Judge) -> None:
    _entries(judge, answer, "layer", "head", "direct", "total")
    here = layer, head = _a_head(judge, answer, tinyworld.CONFIG)
    direct, total = (float(_number(judge, answer[name], name)) for name in ("direct", "total"))
    table, name, give = _taken(1).sum(3).mean(2), f"L{layer}H{head}", "give or take {} for your choice of sentences"
    want, most, turned, ok = float(table[here]), float(table.max()), here[::-1], table[here] > 0.85 * table.max()
    reasons: Reasons = {}
    if not ok:
        others = {i: _taken(i).sum(3).mean(2) for i in (0, 2)}
        reasons = {
            "layer and head exchanged?": turned == divmod(int(table.argmax()), table.shape[1]),
            **{f"it is this one in seed {i}: take seed 1": t[here] == t.max() for i, t in others.items()},
            "take the mean over sentences of found.of(f'L{i}H{h}'), and the largest of all": True,
        }
    seen, there = f"{name} contributes {want:.2f}", f"there is one with {most:.2f}"
    judge.that(ok, "the head that contributes most, directly", seen=seen, expected=there, likely=_first(reasons))
    full, fall = _fall(layer, head)

    def about(given: float, value: float | Tensor) -> bool:
        return abs(given - float(value)) < 0.03 * abs(float(value)) + 0.02

    if abs(direct - want) > 0.5:
        reasons = {
            "direct and total are exchanged": abs(direct - fall) < 0.9 and abs(total - want) < 0.5,
            "this is the total effect: direct is what the unembedding reads of the head's own output": direct == total,
            "the sign: IO minus the repeated name": about(direct, -want),
            **{SLIPS[how]: about(direct, _taken(1, how).sum(3).mean(2)[here]) for how in ("unscaled", "unfolded")},
            "these are all heads of the layer: one head is asked for": about(direct, table[layer].sum()),
            "next to nothing: is it IO minus the repeated name, and at each row's own END?": abs(direct) < 0.1,
            f"take the mean over sentences of found.of('{name}'), with the model of seed 1": True,
        }
    claim, there = f"what {name} contributes directly", f"{want:.2f}, {give.format(0.5)}"
    judge.that(abs(direct - want) < 0.5, claim, seen=direct, expected=there, likely=_first(reasons))
    if abs(total - fall) > 0.9:
        reasons = {
            "the sign: what was before minus what is left": about(total, -fall),
            "this is the direct contribution again: run the model with the head's z replaced": abs(total - want) < 0.4,
            "this is the whole model's difference: the fall is asked for, for one head": about(total, full),
            "this is what is left without the head: take it away from what was before": about(total, full - fall),
            "replace z at END, of this head only, by its mean over sentences, in the model of seed 1": True,
        }
    claim, there = f"the fall of the logit difference without {name}", f"{fall:.2f}, {give.format(0.9)}"
    judge.that(abs(total - fall) < 0.9, claim, seen=total, expected=there, likely=_first(reasons))


STATEMENTS = {
    "a": (True, "the lens does what the model does after its last layer: LayerNorm, then the unembedding"),
    "b": (False, "it may know it in another basis, which the model's unembedding does not read there"),
    "c": (False, "that a trained map can read it off does not mean that the model reads it"),
    "d": (True, "the stream is a sum, and with the scale fixed all that follows is linear, up to the two constants"),
    "e": (False, "opposite contributions may cancel in the mean, or it may work through later components"),
    "f": (False, "later components read what it wrote, and the scale changes: direct is not total"),
    "g": (True, "the difference takes the one from the other, and equal amounts cancel"),
    "h": (False, "what MLPs make of it is written by them, and counted as theirs"),
}


@exercise("What the lens does not show")
def statements(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)
