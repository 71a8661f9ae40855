"""Checks of chapter 4's exercises. Each stands on its own: hand-worked cases, maths written anew, edited weights."""

import copy
import functools
import itertools
import math
import operator
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interp_edu import tinyworld
from interp_edu.checks.core import Judge, exercise
from interp_edu.hooks import Cache, hooked, run_with_cache
from interp_edu.pretrained import load
from interp_edu.transformer import Config, Transformer


def _size(judge: Judge, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=judge.generator))


def _model(judge: Judge, **change: Any) -> Transformer:
    """A small model in which nothing is zero, no two sizes are equal, and LayerNorm has weights of its own."""
    shape = {"n_layers": 2, "d_model": 20, "n_ctx": 12, "d_head": 5, "n_heads": 3, "d_vocab": 31, "d_mlp": 24}
    model = Transformer(Config(**{**shape, **change}), judge.generator)
    for parameter in model.parameters():
        parameter.data.add_(0.4 * judge.randn(*parameter.shape))
    return model.requires_grad_(False)


def _tokens(judge: Judge, model: Transformer, batch: int = 3, length: int = 7) -> Tensor:
    return torch.randint(model.cfg.d_vocab, (batch, length), generator=judge.generator)


def _matrices(judge: Judge, answer: Any, shapes: dict[str, tuple[int | str, ...]]) -> dict[str, Tensor]:
    """The tensors of an answer {name: array-like}. A size given by a word is free, and the same wherever it occurs."""
    judge.that(
        isinstance(answer, dict) and set(answer) == set(shapes),
        f"a dictionary with {', '.join(shapes)} is returned",
        seen=sorted(map(str, answer)) if isinstance(answer, dict) else answer,
    )
    free: dict[str, int] = {}
    found = {}
    for name, shape in shapes.items():
        value = answer[name]
        given = tuple(value.shape) if isinstance(value, Tensor) else np.shape(value)
        known = tuple(free.get(part, part) if isinstance(part, str) else part for part in shape)
        found[name] = judge.tensor(value, given, name)
        if len(given) != len(known) or any(isinstance(k, int) and k != n for k, n in zip(known, given, strict=True)):
            expected = str(known).replace("'", "")  # a size that is still free is shown as its word
            judge.fail(f"{name} has the wrong shape", seen=str(given), expected=expected)
        free.update((part, size) for part, size in zip(known, given, strict=True) if isinstance(part, str))
    return found


# 4.1 -------------------------------------------------------------------------------------------


def _attend(q: Tensor, k: Tensor, v: Tensor, mistake: str = "") -> Tensor:
    """Attention in float64, or what a mistake makes of it. All [batch, pos, head, d_head]."""
    q, k, v = q.double(), k.double(), v.double()
    n, d = q.shape[1], q.shape[3]
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    root = {"no scale": 1.0, "scale d": float(d), "scale all": math.sqrt(d * q.shape[2])}.get(mistake, math.sqrt(d))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / root
    if mistake == "turned":
        future = future.T.contiguous()
    if mistake == "not itself":
        future = torch.ones(n, n, dtype=torch.bool).triu(0)
        future[0, 0] = False
    if mistake == "zero":
        weights = scores.masked_fill(future, 0.0).softmax(-1)
    elif mistake == "late":
        weights = scores.softmax(-1).masked_fill(future, 0.0)
    elif mistake == "queries":
        weights = scores.masked_fill(future, -math.inf).softmax(-2).nan_to_num()
    elif mistake == "no mask":
        weights = scores.softmax(-1)
    else:
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


ATTENTION_MISTAKES = {
    "no mask": "every position sees the whole row, the future too: the mask is missing",
    "no scale": "the scores are not divided by the square root of d_head",
    "scale d": "the scores are divided by d_head, not by its square root",
    "scale all": "divide by the square root of d_head, which is one head's size, not that of all heads together",
    "turned": "the mask is upside down: a query may see keys at its own position and before",
    "not itself": "a position may look at itself: the mask must leave the diagonal open",
    "zero": "a masked score of 0 still gets weight, since exp(0) = 1: use minus infinity",
    "late": "masked after the softmax: the weights no longer sum to one, and the future has had its say in the sum",
    "queries": "the softmax runs over the queries: for each query the weights of the keys must sum to one",
}


NAN_AT = {  # where the hand-worked case has NaN tells what was masked
    (0,): "the first position has nobody left to look at: the mask must leave the diagonal open, triu(1)",
    (2,): "the mask is upside down: the last position has nobody left to look at",
    (0, 1, 2): "0 times minus infinity is NaN: use masked_fill, or torch.full(...).triu(1)",
}


def _numbers(judge: Judge, z: Any, what: str) -> Any:
    """Says what is wrong with an attention output that holds NaN, as far as one can tell."""
    if isinstance(z, Tensor) and z.isnan().any():
        where = tuple(z.isnan().flatten().nonzero().flatten().tolist())
        likely = "a row of scores that is all minus infinity has no softmax: mask by position, and only later ones"
        judge.fail(
            f"{what}: numbers come out", seen="NaN", likely=NAN_AT.get(where, likely) if z.numel() == 3 else likely
        )
    return z


@exercise("Attention, by hand")
def causal_attention(fn: Any, judge: Judge) -> None:
    q, k, v = (
        torch.tensor(x)[None, :, None, None] for x in ([0.0, 1.0, 1.0], [0.0, 0.0, math.log(2)], [1.0, 10.0, 100.0])
    )
    hand = torch.tensor([1.0, 5.5, 52.75])[None, :, None, None]
    mistakes = {text: _attend(q, k, v, name) for name, text in ATTENTION_MISTAKES.items()}
    mistakes["queries and keys are exchanged"] = _attend(k, q, v)
    what = "the three tokens of the page, worked by hand"
    judge.close(_numbers(judge, judge.call(fn, q, k, v), what), hand, what, mistakes=mistakes)
    for batch, pos, heads, d_head in ((2, 6, 3, 4), (3, 5, 2, 7), (1, 1, 1, 2)):
        q, k, v = (judge.randn(batch, pos, heads, d_head) for _ in range(3))
        mistakes = {text: _attend(q, k, v, name) for name, text in ATTENTION_MISTAKES.items()}
        seen = "a batch with several heads" if pos > 1 else "a single token: it can only see itself"
        judge.close(_numbers(judge, judge.call(fn, q, k, v), seen), _attend(q, k, v), seen, mistakes=mistakes)
    q, k, v = 40 * judge.randn(1, 6, 2, 4), 40 * judge.randn(1, 6, 2, 4), judge.randn(1, 6, 2, 4)
    got = judge.call(fn, q, k, v)
    judge.that(
        not isinstance(got, Tensor) or got.isfinite().all(),
        "very large scores give numbers too",
        seen="NaN or infinity",
        likely="exp overflows, or all allowed weights underflow: mask first, then use torch.softmax on each row",
    )
    judge.close(
        got,
        _attend(q, k, v),
        "very large scores",
        likely="subtract each row's own largest allowed score before exp; torch.softmax on masked scores does",
    )


# 4.2 -------------------------------------------------------------------------------------------


def _norm(x: Tensor, w: Tensor, b: Tensor, eps: float, mistake: str = "") -> Tensor:
    x, w, b = x.double(), w.double(), b.double()
    axis = {"positions": 1, "batch": 0}.get(mistake, -1)
    centred = x if mistake == "no mean" else x - x.mean(axis, keepdim=True)
    variance = centred.square().sum(axis, keepdim=True) / (x.shape[axis] - (mistake == "unbiased"))
    if mistake == "whole":
        centred = x - x.mean()
        variance = centred.square().mean()
    if mistake == "std plus eps":
        return centred / (x.std(-1, keepdim=True) + eps) * w + b
    if mistake == "never centred":
        return x / (variance + eps).sqrt() * w + b
    if mistake == "variance":
        return centred / (variance + eps) * w + b
    if mistake == "eps outside":
        return centred / (variance.sqrt() + eps) * w + b
    if mistake == "no eps":
        return centred / variance.sqrt() * w + b
    y = centred / (variance + eps).sqrt()
    return {"no w": y + b, "no b": y * w, "plain": y, "b first": (y + b) * w}.get(mistake, y * w + b)


NORM_MISTAKES = {
    "no mean": "the mean is not subtracted: this is RMSNorm, a relative of LayerNorm",
    "unbiased": "the sum of squares is divided by d - 1: torch's var and std do so unless told unbiased=False",
    "positions": "normalised over positions: each position is normalised for itself, over d_model",
    "batch": "normalised over the batch: that is BatchNorm",
    "whole": "one mean and variance for the whole tensor: each position has its own",
    "never centred": "the mean is subtracted for the variance, but not from x itself",
    "std plus eps": "eps belongs under the root, beside the variance, and x.std divides by d - 1",
    "variance": "divided by the variance: take its square root",
    "eps outside": "eps belongs under the root, beside the variance",
    "no eps": "eps is missing: it keeps a constant vector from dividing by zero",
    "plain": "w and b are missing",
    "no w": "w is missing: it scales every dimension",
    "no b": "b is missing: it shifts every dimension",
    "b first": "b is added before scaling by w: first scale, then shift",
}


@exercise("LayerNorm")
def layer_norm(fn: Any, judge: Judge) -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0, 6.0]]])
    w, b = torch.tensor([1.0, 2.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 5.0, 0.0])
    hand = torch.tensor([[[-1.0, -1.0, 5.0, 1.5]]])
    named = {
        text: _norm(x, w, b, 0.5, name) for name, text in NORM_MISTAKES.items() if name not in ("positions", "batch")
    }
    named["nothing is left but b: with one position in one batch, that is normalising over the wrong axis"] = b[
        None, None
    ]
    judge.close(judge.call(fn, x, w, b, 0.5), hand, "(1, 2, 3, 6), worked by hand", mistakes=named)
    for shape in ((3, 5, 7), (2, 4, 11)):
        x = 3 * judge.randn(*shape) + 4 * judge.randn(*shape[:2], 1)
        w, b, eps = judge.randn(shape[2]), judge.randn(shape[2]), float(judge.rand(1, low=0.2, high=0.8))
        named = {text: _norm(x, w, b, eps, name) for name, text in NORM_MISTAKES.items()}
        judge.close(judge.call(fn, x, w, b, eps), _norm(x, w, b, eps), "a batch of random vectors", mistakes=named)
    constant = torch.full((1, 2, 7), 3.0)
    w, b = judge.randn(7), judge.randn(7)
    judge.close(judge.call(fn, constant, w, b, 1e-5), b.expand(1, 2, 7), "a constant vector gives b")


# 4.3 -------------------------------------------------------------------------------------------


def _parts(cache: Cache, layers: int, outs: tuple[str, ...]) -> Tensor:
    names = ["hook_embed", "hook_pos_embed", *(f"blocks.{i}.hook_{o}" for i in range(layers) for o in outs)]
    return torch.stack([cache[name] for name in names])


@exercise("The residual stream")
def stream_parts(fn: Any, judge: Judge) -> None:
    for attn_only in (False, True):
        layers = _size(judge, 2, 4)
        model = _model(judge, n_layers=layers, **({"attn_only": True, "d_mlp": 0} if attn_only else {}))
        _, cache = run_with_cache(model, _tokens(judge, model))
        outs = ("attn_out",) if attn_only else ("attn_out", "mlp_out")
        want, kind = _parts(cache, layers, outs), "attention-only model" if attn_only else "model"
        got = judge.call(fn, cache, layers)
        if isinstance(got, list | tuple):
            got = torch.stack([torch.as_tensor(part) for part in got])
        final = cache["resid_post", layers - 1]
        if isinstance(got, Tensor) and got.ndim == 4 and len(got) != len(want):
            likely = "embed, pos_embed, then attn_out" + ("" if attn_only else " and mlp_out") + " of every layer"
            if got.shape[-1] == len(want) or got.shape[1] == len(want):
                likely = "stack the parts along a new first axis"
            if len(got) == len(want) - 1:
                likely = "one is missing: are both token and position embeddings there?"
            elif not attn_only and len(got) == 2 + layers:
                likely = "the MLPs write too"
            judge.fail(f"a {kind} of {layers} layers has {len(want)} parts", seen=f"{len(got)} parts", likely=likely)
        got = judge.tensor(got, tuple(want.shape), "the stack of parts")
        if not attn_only:
            streams = _parts(cache, layers, ("resid_mid", "resid_post"))
            judge.that(
                not torch.allclose(got, streams.double()),
                "the parts are what each component writes",
                likely="resid_mid and resid_post are running sums: every part would be counted again and again",
            )
        judge.close(
            got.sum(dim=0),
            final,
            f"the parts of a {kind} sum to its last stream",
            likely="which component is left out, or counted twice?",
        )
        judge.close(got, want, "the parts stand in the order in which they are written")


# 4.4 -------------------------------------------------------------------------------------------


def _without(model: Transformer, layer: int, heads: list[int], *, bias: bool = True) -> Transformer:
    """A copy in which these heads' output matrices are zero, so that what they compute reaches nobody."""
    edited: Any = copy.deepcopy(model)
    edited.blocks[layer].attn.W_O.data[heads] = 0
    edited.blocks[layer].attn.b_O.data.mul_(bias)
    return edited


def _wrong_ablations(model: Transformer, tokens: Tensor, layer: int, head: int) -> dict[str, Tensor]:
    heads = list(range(model.cfg.n_heads))

    def at_position(z: Tensor, _: Any) -> None:
        z[:, head] = 0

    def at_last(z: Tensor, _: Any) -> None:
        z[:, -1, head] = 0

    def at_dimension(z: Tensor, _: Any) -> None:
        z[..., head] = 0

    def changed(hook: Any) -> Tensor:
        with hooked(model, [(f"blocks.{layer}.attn.hook_z", hook)]):
            return model(tokens)

    position, last, dimension = changed(at_position), changed(at_last), changed(at_dimension)
    return {
        "nothing was changed: does the hook write into what it gets or return the new tensor, and does the model "
        "run inside the `with` block?": model(tokens),
        "all heads of the layer are gone: choose one on the axis of heads": _without(model, layer, heads)(tokens),
        "the layer's whole output is gone, with its bias: hook what a single head does, hook_z": _without(
            model, layer, heads, bias=False
        )(tokens),
        "all heads but this one are gone": _without(model, layer, [h for h in heads if h != head])(tokens),
        "a position was zeroed, not a head: hook_z is [batch, pos, head, d_head]": position,
        "only the last position was zeroed: the head is to be gone everywhere": last,
        "a dimension of every head was zeroed, not a head: hook_z is [batch, pos, head, d_head]": dimension,
        **{
            f"layer {other} was ablated, not layer {layer}": _without(model, other, [head])(tokens)
            for other in range(model.cfg.n_layers)
            if other != layer
        },
    }


@exercise("Hooks: reading and writing")
def ablate_head(fn: Any, judge: Judge) -> None:
    model = _model(judge, n_layers=3)
    tokens = _tokens(judge, model, length=6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for layer, head in ((0, 2), (2, 0), (1, 1)):
        got = judge.call(fn, model, tokens, layer, head)
        judge.that(not isinstance(got, tuple), "the logits are returned, and nothing else", seen="a tuple")
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        judge.that(
            not changed,
            "the model is as it was afterwards",
            seen=f"{', '.join(changed)} changed",
            likely="weights were edited: use a hook, which leaves them alone",
        )
        judge.that(
            not model.attached and not any(p.requires_grad for p in model.parameters()),
            "no hook stays attached afterwards, and no parameter asks for gradients that did not before",
            seen=", ".join(model.attached),
            likely="attach hooks in a `with hooked(...)` block, which takes them away however it ends",
        )
        want = _without(model, layer, [head])(tokens)
        right = (
            isinstance(got, Tensor)
            and got.shape == want.shape
            and torch.allclose(got.detach().float(), want, atol=1e-4)
        )
        mistakes = {} if right else _wrong_ablations(model, tokens, layer, head)
        judge.close(got, want, f"L{layer}H{head} ablated", mistakes=mistakes, likely="set hook_z to zero for this head")
    name = "blocks.1.attn.hook_z"
    with hooked(model, [(name, lambda z, hook: 2 * z)]):  # somebody else's hook has to survive, and to count
        got = judge.call(fn, model, tokens, 0, 1)
        judge.that(
            len(model.attached.get(name, [])) == 1,
            "a hook that was attached before is still there",
            seen="it is gone",
            likely="use `with hooked(...)`, which takes away its own hooks and no others",
        )
        judge.close(got, _without(model, 0, [1])(tokens), "L0H1 ablated while another hook is attached")


# 4.5 -------------------------------------------------------------------------------------------


def _forward(p: dict[str, Tensor], tokens: Tensor, layers: int, mistake: str = "") -> Tensor:
    """A transformer written anew in float64, or what a mistake makes of it."""
    p = {name: value.double() for name, value in p.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return _norm(x, p[f"{name}.w"], p[f"{name}.b"], 1e-5)

    x = p["embed.W_E"][tokens] + p["pos_embed.W_pos"][: tokens.shape[1]]
    for layer in range(layers):
        at = f"blocks.{layer}"
        y = x if mistake == "no ln1" else norm(x, f"{at}.ln1")
        q, k, v = (
            torch.einsum("bpd,hde->bphe", y, p[f"{at}.attn.W_{s}"]) + p[f"{at}.attn.b_{s}"] for s in ("Q", "K", "V")
        )
        z = _attend(q, k, v, mistake)
        mid = x + torch.einsum("bphe,hed->bpd", z, p[f"{at}.attn.W_O"]) + p[f"{at}.attn.b_O"]
        y = {"parallel": norm(x, f"{at}.ln2"), "no ln2": mid}.get(mistake, norm(mid, f"{at}.ln2"))
        approximate = "none" if mistake == "exact gelu" else "tanh"
        hidden = F.gelu(y @ p[f"{at}.mlp.W_in"] + p[f"{at}.mlp.b_in"], approximate=approximate)
        written = hidden @ p[f"{at}.mlp.W_out"] + p[f"{at}.mlp.b_out"]
        x = (x if mistake == "stale" else mid) + written
    x = x if mistake == "no final" else norm(x, "ln_final")
    return x @ p["unembed.W_U"] + p["unembed.b_U"]


FORWARD_MISTAKES = {
    "stale": "this is still the function with the bug: compare activation by activation, which is the first to differ?",
    "exact gelu": "this is the exact GELU: GPT-2 uses the tanh approximation",
    "parallel": "the MLP reads the stream from before attention: in GPT-2 it reads what attention has written too",
    "no ln1": "attention reads the stream without LayerNorm",
    "no ln2": "the MLP reads the stream without LayerNorm",
    "no final": "the last LayerNorm, before the unembedding, is missing",
    "no mask": ATTENTION_MISTAKES["no mask"],
    "no scale": ATTENTION_MISTAKES["no scale"],
}


@exercise("Tokens in, logits out")
def forward(fn: Any, judge: Judge) -> None:
    model = _model(judge)
    for layers in (1, 2):
        tokens = _tokens(judge, model)
        p = dict(model.state_dict())
        mistakes = {text: _forward(p, tokens, layers, name) for name, text in FORWARD_MISTAKES.items()}
        want, given = _forward(p, tokens, layers), {name: value.clone() for name, value in p.items()}
        got = judge.call(fn, given, tokens, layers)
        got = got[0] if isinstance(got, tuple) else got
        changed = [name for name, value in p.items() if name in given and not torch.equal(given[name], value)]
        judge.that(
            not changed,
            "the weights are as they were afterwards",
            seen=f"{', '.join(changed)} changed",
            likely="an operation that ends in _ or an assignment to a part of a tensor writes into what it was given",
        )
        judge.close(
            got,
            want,
            f"the logits of a model of {layers} layer{'s' * (layers > 1)}",
            mistakes=mistakes,
            tol=1e-5,
            likely="compare your activations with run_with_cache's, in order: where is the first that differs?",
        )


# 4.6 -------------------------------------------------------------------------------------------


@exercise("A head wired by hand")
def previous_token_head(fn: Any, judge: Judge) -> None:
    sizes = [(_size(judge, 5, 8), _size(judge, 10, 14)), (_size(judge, 12, 15), _size(judge, 6, 9)), (300, 40)]
    for V, n in sizes:
        d_model = 2 * V + n
        shapes: dict[str, tuple[int | str, ...]] = {
            "W_Q": (d_model, "d_head"),
            "W_K": (d_model, "d_head"),
            "W_V": (d_model, "values"),
            "W_O": ("values", d_model),
        }
        W = _matrices(judge, judge.call(fn, n, V), shapes)
        d_head = W["W_Q"].shape[1]
        tokens = torch.cat([torch.randperm(V, generator=judge.generator) for _ in range(2 + n // V)])[:n]  # all words
        x = torch.cat([F.one_hot(tokens, V), torch.eye(n), torch.zeros(n, V)], dim=1).double()
        scores = (x @ W["W_Q"]) @ (x @ W["W_K"]).T / math.sqrt(d_head)
        pattern = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).softmax(-1)
        back = pattern.diagonal(-1)
        worst = int(back.argmin()) + 1
        where = int(pattern[worst].argmax())
        likely = ""
        if bool((pattern.diagonal()[1:] > 0.9).all()):
            likely = "each position attends to itself: the table that matches queries with keys needs a shift by one"
        elif bool((scores.diagonal(1) > scores.diagonal()[:-1] + 1).all()):
            likely = (
                "its highest scores are for the position after it, which is masked: is the shift the other way round?"
            )
        elif bool((pattern[worst, : worst + 1] - 1 / (worst + 1)).abs().max() < 1e-3):
            likely = (
                f"position {worst} attends to everything alike, as its query and the keys do not meet: "
                "the positions are dimensions d_vocab to d_vocab + n_ctx - 1"
            )
        elif bool((back > 1.01 * pattern.diagonal()[1:]).all()) and where == worst - 1:
            likely = "the right position, but not sharply: scores are divided by sqrt(d_head), make them larger"
        elif worst > 3 and bool((pattern[worst, : worst - 1] > 0.5).any()):
            likely = "it attends further back, to a fixed place or to the same word: match positions, one apart"
        judge.that(
            (back > 0.99).all(),
            "every position but the first attends to the one before it",
            seen=f"with {n} positions and {V} words, position {worst} gives {back[worst - 1]:.2f} to the one before "
            f"and {pattern[worst, where]:.2f} to {where}",
            expected="more than 0.99",
            likely=likely,
        )
        out = pattern @ x @ W["W_V"] @ W["W_O"]
        previous = F.one_hot(tokens, V)[:-1].double()
        copied, elsewhere = out[1:, V + n :], out[1:, : V + n]
        own = torch.allclose(elsewhere[:, :V], previous, atol=0.05)
        judge.that(
            elsewhere.abs().max() < 0.05,
            "nothing is written into the token and position dimensions",
            seen=f"up to {elsewhere.abs().max():.2f}",
            likely="the word is written over the token's own dimensions: W_O should lead to the last ones"
            if own
            else "",
        )
        judge.close(
            copied,
            previous,
            "the last dimensions hold the word before, as one-hot",
            tol=0.05,
            likely="W_V reads the token, W_O writes it, both with weight one",
        )


# 4.7 -------------------------------------------------------------------------------------------


def _why_not(W_in: Tensor, out: Tensor, want: Tensor, i: int, j: int, start: int) -> str:
    """Why a stored pair, dimensions i and j, did not write what it should have; answers begin at `start`."""
    if out.abs().max() < 0.02:
        if not bool(((W_in[i] > 0) & (W_in[j] > 0)).any()):
            return f"no neuron reads both dimension {i} and dimension {j}: last names begin at n_first"
        return "no neuron fires: is the bias too negative?"
    if out[:start].abs().max() > 0.02:
        return f"dimension {int(out.abs().argmax())} is written: answers begin at n_first + n_last, which is {start}"
    return "neurons of other pairs fire too, or with another size: the bias has to leave exactly 1"


@exercise("The MLP: keys and values")
def fact_mlp(fn: Any, judge: Judge) -> None:
    for _ in range(3):
        first, last, answers = _size(judge, 3, 4), _size(judge, 5, 6), 7
        pairs = list(itertools.product(range(first), range(last)))
        chosen = torch.randperm(len(pairs), generator=judge.generator)[: len(pairs) // 2].tolist()
        facts = [(*pairs[i], _size(judge, 0, answers - 1)) for i in chosen]
        d_model = first + last + answers
        shapes = {"W_in": (d_model, "neurons"), "b_in": ("neurons",), "W_out": ("neurons", d_model)}
        W = _matrices(judge, judge.call(fn, list(facts), first, last, answers), shapes)
        W_in, b_in, W_out = W.values()
        table = {(i, j): answer for i, j, answer in facts}
        eye = torch.eye(d_model, dtype=torch.float64)

        def mlp(x: Tensor, W_in: Tensor = W_in, b_in: Tensor = b_in, W_out: Tensor = W_out) -> Tensor:
            return torch.relu(x @ W_in + b_in) @ W_out

        for (i, j), answer in table.items():
            out = mlp(eye[i] + eye[first + j])
            want = eye[first + last + answer]
            judge.that(
                (out - want).abs().max() < 0.02,
                "a stored pair writes its answer, with weight one, and nothing else",
                seen=[round(v, 2) for v in out.tolist()],
                expected=[round(v, 2) for v in want.tolist()],
                likely=_why_not(W_in, out, want, i, first + j, first + last),
            )
        for name, x in [
            *((f"first name {i} alone", eye[i]) for i in range(first)),
            *((f"last name {j} alone", eye[first + j]) for j in range(last)),
            ("nothing", 0 * eye[0]),
        ]:
            judge.that(
                mlp(x).abs().max() < 0.02,
                "one name alone, or none, writes nothing",
                seen=f"{mlp(x).abs().max():.2f} for {name}",
                likely="the bias must hold a neuron down until both names are there",
            )
        for i, j in pairs:
            if (i, j) not in table:
                out = mlp(eye[i] + eye[first + j])
                judge.that(
                    out.abs().max() < 0.02,
                    "a pair that is not stored writes nothing",
                    seen=f"{out.abs().max():.2f} for the pair ({i}, {j})",
                    likely="one neuron serves several pairs: give every stored pair its own",
                )


# 4.8 -------------------------------------------------------------------------------------------


@exercise("LayerNorm")
def fold(fn: Any, judge: Judge) -> None:
    for d, out in ((7, 4), (5, 9)):
        w, b, W, c, x = judge.randn(d), judge.randn(d), judge.randn(d, out), judge.randn(out), 3 * judge.randn(11, d)
        got = judge.call(fn, w, b, W, c)
        judge.that(isinstance(got, tuple | list) and len(got) == 2, "two tensors are returned, the new W and the new c")
        new_W = judge.tensor(got[0], (d, out), "the new W")
        new_c = judge.tensor(got[1], (out,), "the new c")
        one, zero = torch.ones(d), torch.zeros(d)
        want = _norm(x, w, b, 1e-5) @ W.double() + c.double()
        plain = _norm(x, one, zero, 1e-5)
        W64, w64, b64, c64 = W.double(), w.double(), b.double(), c.double()
        scaled = w64[:, None] * W64
        mistakes = {
            "b is lost: what it adds to every input, b W, belongs into the new c": plain @ scaled + c64,
            "b was scaled by w: LayerNorm adds b after scaling": plain @ scaled + c64 + b64 @ scaled,
            "w is lost: it scales the rows of W": plain @ W64 + c64 + b64 @ W64,
            "the old c is lost": plain @ scaled + b64 @ W64,
        }
        judge.close(
            plain @ new_W + new_c,
            want,
            "LayerNorm without weights, then the new W and c, gives what LayerNorm with weights, W and c gave",
            mistakes=mistakes,
        )


# 4.9 and 4.10 ----------------------------------------------------------------------------------


@functools.cache
def _attention_to_previous() -> Tensor:
    """Mean attention from each position but the first two to the one before it, [layer, head], on random words."""
    model = load("tinyworld")
    generator = torch.Generator().manual_seed(123)
    tokens = torch.randint(1, model.cfg.d_vocab, (40, 50), generator=generator)
    tokens[:, 0] = 0
    _, cache = run_with_cache(model, tokens, lambda name: name.endswith("pattern"))
    patterns = torch.stack([cache["pattern", layer] for layer in range(model.cfg.n_layers)])
    return patterns.diagonal(-1, dim1=-2, dim2=-1)[..., 1:].mean(dim=(1, 3))


@functools.cache
def _difference_without() -> tuple[Tensor, float]:
    """The mean logit difference of 200 sentences without each head, [layer, head], and with all of them."""
    model = load("tinyworld")
    rng = random.Random(456)
    sentences = [tinyworld.indirect_object(rng) for _ in range(200)]
    rows = [[0, *(tinyworld.TOKENIZER.id(w) for w in s.words)] for s in sentences]
    tokens = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    end = [s.roles["END"] + 1 for s in sentences]
    io = [tinyworld.TOKENIZER.id(s.answer or "") for s in sentences]
    subject = [tinyworld.TOKENIZER.id(s.words[s.roles["S2"]]) for s in sentences]

    def difference(model: Transformer) -> float:
        logits = model(tokens)[range(200), end]
        return (logits[range(200), io] - logits[range(200), subject]).mean().item()

    cfg = model.cfg
    table = [[difference(_without(model, layer, [h])) for h in range(cfg.n_heads)] for layer in range(cfg.n_layers)]
    return torch.tensor(table), difference(model)


def _a_head(judge: Judge, answer: Any, cfg: Config) -> tuple[int, int]:
    """The (layer, head) of an answer, which may be a dictionary or a pair."""
    pair: Any = (answer.get("layer"), answer.get("head")) if isinstance(answer, dict) else answer
    if not isinstance(pair, tuple | list | Tensor) or len(pair) != 2 or None in pair:
        judge.fail("a head is named by its layer and its number", seen=answer, expected='{"layer": 0, "head": 0}')
    try:
        layer, head = (operator.index(part.item() if hasattr(part, "item") else part) for part in pair)
    except TypeError:
        judge.fail("layer and head are whole numbers", seen=answer)
    judge.that(
        0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads,
        f"layers go from 0 to {cfg.n_layers - 1} and heads from 0 to {cfg.n_heads - 1}",
        seen=answer,
        likely="layer and head exchanged, or counted from 1?",
    )
    return layer, head


@exercise("Hooks: reading and writing")
def looks_back(answer: Any, judge: Judge) -> None:
    table = _attention_to_previous()
    layer, head = _a_head(judge, answer, tinyworld.CONFIG)
    judge.that(
        table[layer, head] > 0.9 * table.max(),
        "the head that attends most to the token before",
        seen=f"L{layer}H{head} gives it {table[layer, head]:.2f} of its attention on random words",
        expected=f"there is one with {table.max():.2f}",
        likely="layer and head exchanged?"
        if head < table.shape[0] and layer < table.shape[1] and table[head, layer] > 0.9 * table.max()
        else "take the entry one to the left of the diagonal, pattern[query, query - 1], and average",
    )


@exercise("Hooks: reading and writing")
def needed_head(answer: Any, judge: Judge) -> None:
    table, full = _difference_without()
    without: Any = answer.get("without") if isinstance(answer, dict) else None
    judge.that(isinstance(without, int | float | Tensor), "the answer says what is left without the head", seen=answer)
    layer, head = _a_head(judge, answer, tinyworld.CONFIG)
    fall = full - table
    likely = "average over many sentences, and compare IO with S at END, where the answer is predicted"
    if fall[layer, head] < 0:
        likely = "without this head the difference grows: look for the largest fall, not the largest change"
    judge.that(
        fall[layer, head] > 0.9 * fall.max(),
        "the head without which the logit difference falls most",
        seen=f"without L{layer}H{head} it goes from {full:.2f} to {table[layer, head]:.2f}",
        expected=f"without another it goes to {table.min():.2f}",
        likely=likely,
    )
    judge.that(
        abs(float(without) - float(table[layer, head])) < 1.0,
        "the mean logit difference without that head",
        seen=f"{float(without):.2f}",
        expected=f"{table[layer, head]:.2f}, give or take 1 for your choice of sentences",
        likely="it is the mean over sentences of two logits' difference at END; not the fall, nor a probability",
    )


# 4.11 ------------------------------------------------------------------------------------------

STATEMENTS = {
    "a": (True, "the stream has no other input: embeddings, and what attention and MLPs have written"),
    "b": (False, "masks let information flow forward only: a token cannot change what was computed before it"),
    "c": (True, "with the scale frozen, it subtracts a mean, multiplies and adds b: linear up to a constant"),
    "d": (False, "weights must go somewhere, as they sum to one: look at the values, and ablate"),
    "e": (False, "another head may have made up for it, or two effects cancelled on this input"),
    "f": (False, "the logits at a position are for the next token"),
    "g": (False, "zero also removes the head's mean, which the layers above have learned to count on"),
}


@exercise("The residual stream")
def statements(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)
