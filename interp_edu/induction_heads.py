"""Induction heads: two heads that continue [A][B] ... [A] with [B], how to find them, and how to test that it is them.

Elhage et al. 2021 (the circuit), Olsson et al. 2022, "In-context Learning and Induction Heads" (the scores and the
phase change). A head of one layer, the previous-token head, writes into each position which token came before; a head
of a later layer, the induction head, looks for positions whose note is the current token, and copies what stands there.

Rows may have different lengths: they are padded at the end, and `lengths` says where each one ends. The token that
begins a row, `bos`, is no word: nobody is asked to find it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_edu.hooks import HookFunction, hook_name, run_with_cache
from interp_edu.transformer import Transformer

Tokens = Int[Tensor, "batch pos"]
Targets = Bool[Tensor, "batch query key"]
Heads = Iterable[tuple[int, int]]  # (layer, head)
Hooks = list[tuple[str, HookFunction]]


def repeated_tokens(
    rows: int,
    period: int,
    d_vocab: int,
    *,
    times: int = 2,
    bos: int | None = 0,
    generator: torch.Generator | None = None,
) -> Tokens:
    """Random words, `period` of them, and the same again, `times` times in all, after `bos` if there is one.

    >>> repeated_tokens(8, 20, 50257, bos=50256).shape
    torch.Size([8, 41])
    """
    words = torch.randint(d_vocab - (bos is not None), (rows, period), generator=generator)
    if bos is None:
        return words.repeat(1, times)
    words += words >= bos
    return torch.cat([torch.full((rows, 1), bos), words.repeat(1, times)], dim=1)


def phrase_tokens(
    rows: int,
    length: int,
    d_vocab: int,
    *,
    phrases: int = 4,
    longest: int = 4,
    generator: torch.Generator | None = None,
) -> Tokens:
    """Token 0, then `length` words: each row has a few random phrases, of 2 to `longest` words, in random order.

    As the phrases come back at ever other distances, only the words themselves tell what comes next.
    """
    n_words = torch.randint(2, longest + 1, (rows, phrases), generator=generator)
    words = torch.randint(1, d_vocab, (rows, phrases, longest), generator=generator)
    order = torch.randint(phrases, (rows, length), generator=generator)  # more than enough
    written = torch.arange(longest) < n_words[..., None]
    lines = [words[row, order[row]][written[row, order[row]]][:length] for row in range(rows)]
    return torch.cat([torch.zeros(rows, 1, dtype=torch.int64), torch.stack(lines)], dim=1)


# Where a head should look ------------------------------------------------------------------------


def before(
    tokens: Tokens, back: int = 1, *, bos: int | None = 0, lengths: Int[Tensor, "batch"] | None = None
) -> Targets:
    """For each query the position `back` before it, unless `bos` stands there."""
    n = tokens.shape[1]
    key = torch.eye(n, dtype=torch.bool).tril().roll(-back, dims=1).tril(-back) if back else torch.eye(n).bool()
    return key & _words(tokens, bos, lengths)


def after_match(
    tokens: Tokens, offset: int = 1, *, bos: int | None = 0, lengths: Int[Tensor, "batch"] | None = None
) -> Targets:
    """For each query the positions that come `offset` after an earlier occurrence of the query's own token.

    An induction head usually looks at offset 1, a duplicate-token head at 0. But heads that look further on can do the
    same work by other means, and the usual score, at offset 1 alone, misses them.
    """
    n = tokens.shape[1]
    earlier = (tokens[:, :, None] == tokens[:, None, :]) & torch.ones(n, n).tril(-1).bool()
    shifted = torch.zeros_like(earlier)
    if offset >= 0:
        shifted[:, :, offset:] = earlier[:, :, : max(n - offset, 0)]
    else:
        shifted[:, :, :offset] = earlier[:, :, -offset:]
    return shifted & torch.ones(n, n).tril().bool() & _words(tokens, bos, lengths)


def _words(tokens: Tokens, bos: int | None, lengths: Int[Tensor, "batch"] | None) -> Targets:
    """Pairs of positions at which words stand: no `bos`, no padding."""
    word = torch.ones_like(tokens, dtype=torch.bool) if bos is None else tokens != bos
    if lengths is not None:
        word = word & (torch.arange(tokens.shape[1]) < lengths[:, None])
    return word[:, :, None] & word[:, None, :]


def attention_to(pattern: Float[Tensor, "batch head query key"], targets: Targets) -> Float[Tensor, "head"]:
    """The attention that a head gives to a query's targets together, averaged over all queries that have any.

    Raises ValueError if no query has one.
    """
    asked = _asked(targets)
    given = (pattern * targets[:, None]).sum(dim=-1)  # batch head query
    return given.transpose(1, 2)[asked].mean(dim=0)


def _asked(targets: Targets) -> Bool[Tensor, "batch query"]:
    """The queries that have a target."""
    asked = targets.any(dim=-1)
    if not asked.any():
        raise ValueError("no query has a target here: are there repeats in these tokens?")
    return asked


def attention_scores(model: Transformer, tokens: Tokens, targets: Targets) -> Float[Tensor, "layer head"]:
    """`attention_to` for every head of a model.

    With `after_match` this is the prefix-matching or induction score, with `before` the previous-token score.
    """
    _, cache = run_with_cache(model, tokens, lambda name: name.endswith("hook_pattern"))
    return torch.stack([attention_to(cache["pattern", layer], targets) for layer in range(model.cfg.n_layers)])


def copied_share(model: Transformer, tokens: Tokens, targets: Targets) -> Float[Tensor, "layer head"]:
    """How often the token at the target to which a head gives most attention is the one whose logit it raises most.

    Over all queries that have a target. What counts is the head's direct effect on the logits, with the scale of the
    last LayerNorm as it was in this run. By chance it is about 1 / d_vocab. Raises ValueError if no query has a target.
    """
    _, cache = run_with_cache(model, tokens, lambda name: name.endswith(("hook_pattern", "hook_z")))
    asked = _asked(targets)
    # The last LayerNorm divides by a positive number, which changes no order; its mean and its weights do.
    W_U = model.unembed.W_U if model.cfg.normalization_type != "LN" else model.ln_final.w[:, None] * model.unembed.W_U
    if model.cfg.normalization_type is not None:
        W_U = W_U - W_U.mean(dim=0, keepdim=True)
    shares = []
    for layer in range(model.cfg.n_layers):
        W_O = model.get_parameter(f"blocks.{layer}.attn.W_O")
        for head in range(model.cfg.n_heads):
            raised = cache["z", layer][:, :, head][asked] @ W_O[head] @ W_U  # asked d_vocab
            pattern = cache["pattern", layer][:, head].masked_fill(~targets, -1)
            attended = tokens.gather(1, pattern.argmax(dim=-1))[asked]
            shares.append((raised.argmax(dim=-1) == attended).float().mean())
    return torch.stack(shares).view(model.cfg.n_layers, model.cfg.n_heads)


# In-context learning -----------------------------------------------------------------------------


def token_losses(
    model: Transformer, tokens: Tokens, lengths: Int[Tensor, "batch"] | None = None
) -> Float[Tensor, "batch next"]:
    """The loss of each token but the first, in nats; entry i is token i + 1's. NaN for padding."""
    losses = F.cross_entropy(model(tokens)[:, :-1].mT, tokens[:, 1:], reduction="none")
    if lengths is not None:
        losses = losses.masked_fill(torch.arange(1, tokens.shape[1]) >= lengths[:, None], torch.nan)
    return losses


def in_context_score(losses: Float[Tensor, "batch next"], early: slice, late: slice) -> float:
    """Mean loss late in the row minus mean loss early in it: negative if the model learns from its context.

    Olsson et al. 2022 take the 500th token minus the 50th. Raises ValueError if there is nothing to average.
    """
    means = [losses[:, part].nanmean().item() for part in (early, late)]
    if any(mean != mean for mean in means):
        raise ValueError(f"no token lies in {early if means[0] != means[0] else late}")
    return means[1] - means[0]


# Is it them? -------------------------------------------------------------------------------------


def ablation(model: Transformer, tokens: Tokens, heads: Heads, how: str = "mean") -> Hooks:
    """Hooks under which some heads say nothing about their input, to be used as `with hooked(model, ablation(...))`.

    "mean" puts each head's mean over these rows in its place, position by position, so rows of equal lengths are
    needed; "zero" puts nothing there, which the layers above may never have met.

    Raises ValueError for another `how`, or a head that does not exist.
    """
    heads = _checked(model, heads)
    if how not in ("mean", "zero"):
        raise ValueError(f"how must be 'mean' or 'zero', not {how!r}")
    layers = sorted({layer for layer, _ in heads})
    _, cache = run_with_cache(model, tokens, [hook_name("z", layer) for layer in layers])

    def hook_for(layer: int) -> HookFunction:
        mine = [h for at, h in heads if at == layer]
        instead = cache["z", layer].mean(dim=0, keepdim=True)[:, :, mine] * (how == "mean")

        def hook(z: Tensor, _: Any) -> None:  # batch pos head d_head
            z[:, :, mine] = instead

        return hook

    return [(hook_name("z", layer), hook_for(layer)) for layer in layers]


def cut(model: Transformer, tokens: Tokens, senders: Heads, receivers: Heads, side: str = "k") -> Hooks:
    """Hooks that cut the direct path from some heads to one input of others: what the receivers' queries ("q"), keys
    ("k") or values ("v") are computed from holds the senders' means over these rows instead of what they wrote.

    All else stays as it is: the senders still write, everybody else reads it, and what other components made of it
    still arrives. The receivers' LayerNorm is computed anew on what is left. Rows of equal lengths are needed.

    Raises ValueError for a side that does not exist, or a sender that is not in an earlier layer than a receiver.
    """
    senders, receivers = _checked(model, senders), _checked(model, receivers)
    if side not in ("q", "k", "v"):
        raise ValueError(f"side must be 'q', 'k' or 'v', not {side!r}")
    if max(layer for layer, _ in senders) >= min(layer for layer, _ in receivers):
        raise ValueError("a sender must be in an earlier layer than every receiver")
    layers = sorted({layer for layer, _ in senders})
    _, cache = run_with_cache(model, tokens, [hook_name("result", layer) for layer in layers])
    said = torch.stack([cache["result", layer][:, :, head] for layer, head in senders]).sum(dim=0)
    said = said - said.mean(dim=0, keepdim=True)  # batch pos d_model

    def hook_for(layer: int) -> HookFunction:
        mine = [h for at, h in receivers if at == layer]

        def hook(x: Tensor, _: Any) -> None:  # batch pos head d_model
            x[:, :, mine] -= said[:, :, None]

        return hook

    return [(hook_name(f"{side}_input", layer), hook_for(layer)) for layer in sorted({at for at, _ in receivers})]


def _checked(model: Transformer, heads: Heads) -> Sequence[tuple[int, int]]:
    heads = list(dict.fromkeys(heads))
    for layer, head in heads:
        if not (0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads):
            raise ValueError(f"there is no L{layer}H{head} in {model.cfg.n_layers} layers of {model.cfg.n_heads} heads")
    if not heads:
        raise ValueError("name at least one head as (layer, head)")
    return heads
