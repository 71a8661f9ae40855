"""What an attention head does, read from its weights: where it looks (QK) and what it moves (OV).

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". Vectors are rows here, as everywhere in the
code: QK = W_Q W_K^T and OV = W_V W_O, so the score of x_i with x_j is x_i QK x_j^T / sqrt(d_head), and what j hands
over is x_j OV. Papers write columns: their W_QK is the same matrix, their W_OV its transpose. Both have rank d_head
at most and are kept as two thin factors.

The weights of LayerNorm must be folded first (`folding.fold_layer_norm`): only then do W_Q, W_K and W_V say by
themselves what a head reads.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from interp_edu.hooks import Cache, run_with_cache
from interp_edu.transformer import Transformer, normalized


@dataclass(frozen=True)
class LowRank:
    """The matrix left @ right, kept as its two thin factors; it may have leading axes, such as layer and head.

    >>> LowRank(torch.randn(12, 768, 64), torch.randn(12, 64, 768)).norm().shape  # never 768 x 768
    torch.Size([12])
    """

    left: Float[Tensor, "*lead row rank"]
    right: Float[Tensor, "*lead rank column"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def T(self) -> "LowRank":
        return LowRank(self.right.mT, self.left.mT)

    def __getitem__(self, index: Any) -> "LowRank":
        """Of the leading axes: `ov[1, 3]` is head 3 of layer 1."""
        return LowRank(self.left[index], self.right[index])

    def full(self) -> Float[Tensor, "*lead row column"]:
        """The matrix itself, all rows times all columns of it: think before you ask for d_vocab by d_vocab."""
        return self.left @ self.right

    def norm(self) -> Float[Tensor, "*lead"]:
        """The Frobenius norm."""
        return torch.linalg.matrix_norm(_triangle(self.left) @ _triangle(self.right.mT).mT)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U [*lead row rank], S [*lead rank] and Vh [*lead rank column], as of the full matrix, but thin."""
        (Q, R), (P, S) = torch.linalg.qr(self.left), torch.linalg.qr(self.right.mT)
        U, values, Vh = torch.linalg.svd(R @ S.mT, full_matrices=False)
        return Q @ U, values, Vh @ P.mT

    def eigenvalues(self) -> Complex[Tensor, "*lead rank"]:
        """The eigenvalues that can differ from zero, complex numbers: those of right @ left.

        Raises ValueError for a matrix that is not square.
        """
        if self.shape[-2] != self.shape[-1]:
            raise ValueError(f"only a square matrix has eigenvalues, this one is {self.shape[-2]} x {self.shape[-1]}")
        return torch.linalg.eigvals(self.right @ self.left)


def _triangle(x: Float[Tensor, "*lead long short"]) -> Float[Tensor, "*lead rank short"]:
    """R of x = QR: its products have the same norms, as Q is orthogonal."""
    return torch.linalg.qr(x, mode="r").R


# The two halves ----------------------------------------------------------------------------------


def qk_circuits(model: Transformer) -> LowRank:
    """W_Q W_K^T of every head, [layer, head, d_model, d_model]. Raises ValueError if LayerNorm is not folded."""
    _must_be_folded(model)
    return LowRank(model.stacked("attn.W_Q"), model.stacked("attn.W_K").mT)


def ov_circuits(model: Transformer) -> LowRank:
    """W_V W_O of every head, [layer, head, d_model, d_model]. Raises ValueError if LayerNorm is not folded."""
    _must_be_folded(model)
    return LowRank(model.stacked("attn.W_V"), model.stacked("attn.W_O"))


def full_qk(
    model: Transformer,
    layer: int,
    head: int,
    queries: Float[Tensor, "query d_model"],
    keys: Float[Tensor, "key d_model"],
) -> LowRank:
    """The scores of streams with streams, [query, key], exactly as attention computes them: normalised, with biases.

    For tokens alone give rows of W_E; for tokens where they stand give sums such as `W_E[t] + W_pos[p]`.
    """
    _must_be_folded(model)
    W_Q, W_K, b_Q, b_K = (_of(model, layer, head, name) for name in ("W_Q", "W_K", "b_Q", "b_K"))
    q, k = _seen(model, layer, queries) @ W_Q + b_Q, _seen(model, layer, keys) @ W_K + b_K
    return LowRank(q, k.mT / math.sqrt(model.cfg.d_head))


def full_ov(model: Transformer, layer: int, head: int, sources: Float[Tensor, "source d_model"]) -> LowRank:
    """What attending fully to each of some streams adds directly to the logits, [source, d_vocab].

    With the value bias, without b_O, and up to the division of the last LayerNorm, which depends on all the rest.
    """
    _must_be_folded(model)
    W_V, W_O, b_V = (_of(model, layer, head, name) for name in ("W_V", "W_O", "b_V"))
    return LowRank(_seen(model, layer, sources) @ W_V + b_V, W_O @ model.unembed.W_U)


def copying_score(square: LowRank) -> Float[Tensor, "*lead"]:
    """Sum of eigenvalues over the sum of their sizes, from -1 to 1 (Elhage et al. 2021, "Detecting copying behavior").

    1 if every eigenvector, a mixture of tokens, is mapped to more of the same; 0 for a matrix of zeros. Of other
    mixtures, single tokens among them, nothing follows: positive eigenvalues are evidence of copying, not proof.
    """
    values = square.eigenvalues()
    sizes = values.abs().sum(dim=-1)
    return torch.where(sizes > 0, values.real.sum(dim=-1) / sizes, torch.zeros_like(sizes))


def _of(model: Transformer, layer: int, head: int, name: str) -> Tensor:
    cfg = model.cfg
    if not (0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
        raise ValueError(f"there is no L{layer}H{head}: {cfg.n_layers} layers, {cfg.n_heads} heads, counted from 0")
    return model.get_parameter(f"blocks.{layer}.attn.{name}")[head]


def _seen(model: Transformer, layer: int, streams: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    return normalized(streams, {}, model.cfg)


def _must_be_folded(model: Transformer) -> None:
    if model.cfg.normalization_type == "LN":
        raise ValueError(
            "LayerNorm has weights of its own here, which belong to what a head reads: use fold_layer_norm(model) first"
        )


# Composition -------------------------------------------------------------------------------------


def composition_scores(writers: LowRank, readers: LowRank) -> Float[Tensor, "..."]:
    """How much of what each writer writes each reader reads: |writer reader| / (|writer| |reader|), Frobenius norms.

    Elhage et al. 2021, "Composition". Writers are OV circuits, [*writer, d_model, d_model]; readers depend on the side:
    `qk` for queries (Q-composition), `qk.T` for keys (K), `ov` for values (V). Whether the writer comes before the
    reader, you have to know. If they had nothing to do with each other, the root mean square would be
    1 / sqrt(d_model): see `rotated`. A matrix of zeros composes with nothing: 0.
    """
    before, after = writers.left.shape[:-2], readers.left.shape[:-2]
    A, B, C, D = (
        x.reshape(-1, *x.shape[-2:])
        for x in (_triangle(writers.left), writers.right, readers.left, _triangle(readers.right.mT).mT)
    )
    sizes = writers.norm().flatten()[:, None] * readers.norm().flatten()
    together = torch.stack([torch.linalg.matrix_norm((a @ b) @ C @ D) for a, b in zip(A, B, strict=True)])
    return torch.where(sizes > 0, together / sizes.clamp_min(1e-30), 0.0).view(before + after)


def rotated(writers: LowRank, generator: torch.Generator | None = None) -> LowRank:
    """The writers with what each writes turned at random: all singular values kept, all aim lost.

    The baseline of `composition_scores`. As a random rotation spreads a vector evenly over all directions, the mean
    square of a score is exactly 1 / d_model, whatever the singular values.
    """
    *lead, _, d_model = writers.right.shape
    turn, R = torch.linalg.qr(torch.randn(*lead, d_model, d_model, generator=generator))
    turn = turn * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # uniform among all rotations (Mezzadri 2007)
    return LowRank(writers.left, writers.right @ turn)


# One head on one input ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """Attention scores as a sum: `values[a, b]` is what query part a and key part b contribute, [batch, query, key]."""

    parts: tuple[str, ...]
    values: Float[Tensor, "query_part key_part batch query key"]

    def largest(self, query: int, key: int, n: int = 5, batch: int = 0) -> list[tuple[str, str, float]]:
        """The n terms of one score that are largest in size, as (query part, key part, term)."""
        table = self.values[:, :, batch, query, key]
        order = table.flatten().abs().argsort(descending=True)[:n].tolist()
        pairs = [divmod(i, len(self.parts)) for i in order]
        return [(self.parts[a], self.parts[b], table[a, b].item()) for a, b in pairs]


def stream_parts(model: Transformer, cache: Cache, layer: int) -> tuple[tuple[str, ...], Float[Tensor, "part ..."]]:
    """What the stream before a layer is the sum of: names, and [part, batch, pos, d_model].

    `embed` and `pos_embed`, then for each layer below its heads, its `b_O` and its MLP. Heads stand alone if the
    cache holds `attn.hook_result`, else layers do (`attn 0`).
    """
    parts = {"embed": cache["hook_embed"], "pos_embed": cache["hook_pos_embed"]}
    for i in range(layer):
        if ("result", i) in cache:
            parts |= {f"L{i}H{h}": x for h, x in enumerate(cache["result", i].unbind(dim=2))}
            parts[f"b_O {i}"] = model.get_parameter(f"blocks.{i}.attn.b_O").expand_as(parts["embed"])
        else:
            parts[f"attn {i}"] = cache["attn_out", i]
        if ("mlp_out", i) in cache:
            parts[f"MLP{i}"] = cache["mlp_out", i]
    return tuple(parts), torch.stack(list(parts.values()))


def attention_terms(model: Transformer, cache: Cache, layer: int, head: int) -> Terms:
    """A head's scores as a sum over pairs of parts of the stream, with the biases as a part of their own.

    Exact: the terms of a score add up to `attn.hook_attn_scores` where nothing is masked. LayerNorm's division is taken
    as it was in this run, so a term says what a part contributed, not what would happen without it.
    """
    _must_be_folded(model)
    W_Q, W_K, b_Q, b_K = (_of(model, layer, head, name) for name in ("W_Q", "W_K", "b_Q", "b_K"))
    names, x = stream_parts(model, cache, layer)
    if model.cfg.normalization_type is not None:
        x = (x - x.mean(dim=-1, keepdim=True)) / cache["ln1.scale", layer]
    q, k = x @ W_Q, x @ W_K
    q, k = (torch.cat([side, b.expand_as(side[:1])]) for side, b in ((q, b_Q), (k, b_K)))
    values = torch.einsum("abqe,cbke->acbqk", q, k) / math.sqrt(model.cfg.d_head)
    return Terms((*names, "bias"), values)


def output_by_source(
    model: Transformer, cache: Cache, layer: int, head: int
) -> Float[Tensor, "batch query key d_model"]:
    """What a head writes at each query position, as a sum over the positions that it came from.

    The sum over `key` is the head's `attn.hook_result`. How much moved is the length of an entry, not its weight.
    """
    W_O = _of(model, layer, head, "W_O")
    moved = cache["v", layer][:, :, head] @ W_O  # batch key d_model
    return torch.einsum("bqk,bkd->bqkd", cache["pattern", layer][:, head], moved)


def attended_effects(
    model: Transformer, cache: Cache, tokens: Int[Tensor, "batch pos"], layer: int, head: int, more_than: float = 0.3
) -> Float[Tensor, "n"]:
    """By how much a head itself changes the logit of the word that it attends to, each time that it does.

    That is at all queries at which it gives more than `more_than` to one earlier word, other than the row's first token
    and the query itself. The direct effect alone: the head's output through the unembedding, with the last LayerNorm's
    scale as it was and the mean over the vocabulary subtracted. `cache` holds patterns, z and that scale.
    """
    _must_be_folded(model)
    W_U = model.unembed.W_U - model.unembed.W_U.mean(dim=1, keepdim=True)
    scale = cache.get("ln_final.hook_scale", torch.ones(*tokens.shape, 1))
    if model.cfg.normalization_type is not None:
        W_U = W_U - W_U.mean(dim=0, keepdim=True)
    W_O = _of(model, layer, head, "W_O")
    pattern = cache["pattern", layer][:, head].tril(-1)
    pattern[..., 0] = 0
    weight, key = pattern.max(dim=-1)
    asked = weight > more_than
    written = (cache["z", layer][:, :, head] @ W_O / scale)[asked]
    return (written * W_U.T[tokens.gather(1, key)[asked]]).sum(dim=-1)


def effect_on_attended(
    model: Transformer, tokens: Int[Tensor, "batch pos"], more_than: float = 0.3
) -> Float[Tensor, "layer head"]:
    """The mean of every head's `attended_effects`; NaN for a head that has none."""
    wanted = ("hook_pattern", "hook_z", "ln_final.hook_scale")
    _, cache = run_with_cache(model, tokens, lambda name: name.endswith(wanted))
    heads = itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads))
    means = [attended_effects(model, cache, tokens, *at, more_than).mean() for at in heads]
    return torch.stack(means).view(model.cfg.n_layers, model.cfg.n_heads)
