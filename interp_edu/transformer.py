"""GPT-2's architecture from scratch, as a residual stream that can be read and written at every point.

Radford et al. 2019 (pre-LayerNorm, learned positions, GELU), in the layout of Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits": each head has its own matrices, and every component adds to the stream.
Parameters have TransformerLens's names and shapes, activations its hook names, so its state dicts load here.

    embed + pos_embed -> [ln1 -> attn -> (+) -> ln2 -> mlp -> (+)] x n_layers -> ln_final -> unembed
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp_edu.hooks import HookFunction, HookPoints

Stream = Float[Tensor, "batch pos d_model"]
PerHead = Float[Tensor, "batch pos head d_head"]
Weights = Mapping[str, Any]


@dataclass(frozen=True)
class Config:
    """The shape of a model. `normalization_type` is "LN", "LNPre" (no weights of its own: folded) or None."""

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    n_heads: int
    d_vocab: int
    d_mlp: int = 0
    act_fn: str = "gelu_new"
    attn_only: bool = False
    normalization_type: str | None = "LN"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_vocab"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn must be one of {', '.join(ACTIVATIONS)}, not {self.act_fn!r}")
        if self.normalization_type not in ("LN", "LNPre", None):
            raise ValueError(f"normalization_type must be 'LN', 'LNPre' or None, not {self.normalization_type!r}")
        if self.attn_only == bool(self.d_mlp):
            raise ValueError("d_mlp must be 0 for an attention-only model and at least 1 for any other")


# The maths ---------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),  # GPT-2's
    "gelu": F.gelu,
    "relu": F.relu,
}


def layer_norm(
    x: Float[Tensor, "*batch d_model"],
    w: Float[Tensor, "d_model"] | None = None,
    b: Float[Tensor, "d_model"] | None = None,
    eps: float = 1e-5,
    points: HookPoints | None = None,
) -> Float[Tensor, "*batch d_model"]:
    """Subtract the mean, divide by the standard deviation, then scale by w and shift by b (Ba et al. 2016).

    `hook_scale` is what is divided by, of shape [..., 1]: freeze it, and LayerNorm is affine.
    `hook_normalized` is what comes out of the division, before w and b.
    """
    if points is None or not (points.busy and (points.used("hook_scale") or points.used("hook_normalized"))):
        return torch.layer_norm(x, x.shape[-1:], w, b, eps)
    x = x - x.mean(dim=-1, keepdim=True)
    scale = points("hook_scale", (x.square().mean(dim=-1, keepdim=True) + eps).sqrt())
    x = points("hook_normalized", x / scale)
    return x if w is None or b is None else torch.addcmul(b, x, w)


def normalized(x: Tensor, p: Weights, cfg: Config, points: HookPoints | None = None) -> Tensor:
    """x as the model's kind of LayerNorm leaves it."""
    return x if cfg.normalization_type is None else layer_norm(x, p.get("w"), p.get("b"), cfg.eps, points)


def attention(q: PerHead, k: PerHead, v: PerHead, points: HookPoints | None = None) -> PerHead:
    """Each position's average of the values up to and including its own, weighted by softmax(q k^T / sqrt(d_head))."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # batch head pos d_head
    if points is None or not (points.used("hook_attn_scores") or points.used("hook_pattern")):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    mask = causal_mask(q.shape[2], q.device, q.dtype)
    scores = points("hook_attn_scores", (q @ k.mT).mul_(1 / math.sqrt(q.shape[-1])).add_(mask))
    pattern = points("hook_pattern", scores.softmax(dim=-1))  # batch head query key
    return (pattern @ v).transpose(1, 2)


@functools.lru_cache(maxsize=16)
def causal_mask(n: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "pos pos"]:
    """Zeros on and below the diagonal, minus infinity above: added to the scores, nobody looks ahead."""
    return torch.full((n, n), -math.inf, device=device, dtype=dtype).triu_(1)


def to_heads(
    x: Float[Tensor, "batch pos ..."], W: Float[Tensor, "head d_model d_head"], b: Float[Tensor, "head d_head"]
) -> PerHead:
    """x W[h] + b[h] for every head h; x may also hold an input for each head, [batch pos head d_model]."""
    if x.ndim == 4:
        return torch.einsum("bphd,hde->bphe", x, W) + b
    return F.linear(x, W.mT.flatten(0, 1), b.flatten()).view(*x.shape[:-1], *b.shape)


def attention_layer(p: Weights, inputs: Sequence[Tensor], points: HookPoints) -> Stream:
    """What a layer's heads write. `inputs`: what queries, keys and values are computed from, as `to_heads` takes it."""
    flat = _all_at_once(p) if inputs[0] is inputs[1] is inputs[2] else None
    if flat:
        sides = F.linear(inputs[0], *flat).view(*inputs[0].shape[:2], 3, *p["b_Q"].shape).unbind(dim=2)
    else:
        sides = tuple(to_heads(x, p[f"W_{side}"], p[f"b_{side}"]) for x, side in zip(inputs, "QKV", strict=True))
    q, k, v = points("hook_q", sides[0]), points("hook_k", sides[1]), points("hook_v", sides[2])
    z = points("hook_z", attention(q, k, v, points))
    if points.used("hook_result"):  # each head's own summand, n_heads times as large as their sum
        return points("hook_result", torch.einsum("bphe,hed->bphd", z, p["W_O"])).sum(dim=2) + p["b_O"]
    return F.linear(z.flatten(2), p["W_O"].flatten(0, 1).mT, p["b_O"])


def mlp_layer(p: Weights, x: Stream, act: Callable[[Tensor], Tensor], points: HookPoints) -> Stream:
    """What the MLP writes: act(x W_in + b_in) W_out + b_out."""
    pre = points("hook_pre", F.linear(x, p["W_in"].mT, p["b_in"]))
    post = points("hook_post", act(pre))
    return F.linear(post, p["W_out"].mT, p["b_out"])


def _all_at_once(p: Weights) -> tuple[Tensor, Tensor] | None:
    """The weights and biases of queries, keys and values as one, for one matrix product instead of three.

    None while gradients are wanted (they belong to the three), or if the three no longer lie side by side in memory.
    """
    Q, K, V, b = p["W_Q"], p["W_K"], p["W_V"], p["b_Q"]
    if Q.requires_grad and torch.is_grad_enabled():
        return None
    rows, d_model, step, small = 3 * b.numel(), Q.shape[1], Q.nbytes, b.nbytes
    try:
        together = (
            K.data_ptr() - Q.data_ptr() == V.data_ptr() - K.data_ptr() == step
            and p["b_K"].data_ptr() - b.data_ptr() == p["b_V"].data_ptr() - p["b_K"].data_ptr() == small
            and Q.untyped_storage().nbytes() == 3 * step
            and b.untyped_storage().nbytes() == 3 * small
        )
    except RuntimeError:  # inside torch.func transforms tensors have no address
        return None
    return (Q.as_strided((rows, d_model), (d_model, 1)), b.as_strided((rows,), (1,))) if together else None


# The modules hold parameters ---------------------------------------------------------------------


class Parameters(nn.Module):
    """Named parameters and nothing else; without any it stands for a LayerNorm that has no weights."""

    def __init__(self, **tensors: Tensor):
        super().__init__()
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor))

    def extra_repr(self) -> str:
        return ", ".join(f"{name} {list(value.shape)}" for name, value in self.named_parameters())

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def weights(module: nn.Module | None) -> Weights:
    """A module's own parameters by name. To look one up as an attribute takes torch as long as to add two vectors."""
    return module._parameters  # type: ignore[union-attr]


def _norm(cfg: Config) -> Parameters:
    return (
        Parameters(w=torch.ones(cfg.d_model), b=torch.zeros(cfg.d_model))
        if cfg.normalization_type == "LN"
        else Parameters()
    )


class Block(nn.Module):
    """One layer: attention, then the MLP; each reads a normalised copy of the stream and adds to it."""

    def __init__(self, cfg: Config, layer: int):
        super().__init__()
        self.cfg, self.name, self.act = cfg, f"blocks.{layer}.", ACTIVATIONS[cfg.act_fn]
        d, h, e, m = cfg.d_model, cfg.n_heads, cfg.d_head, cfg.d_mlp
        # One block of memory for all heads of W_Q, W_K and W_V, one for their biases: see `_all_at_once`.
        W_Q, W_K, W_V = torch.empty(3, h, e, d).mT
        b_Q, b_K, b_V = torch.zeros(3, h, e)
        self.ln1 = _norm(cfg)
        self.attn = Parameters(
            W_Q=W_Q, W_K=W_K, W_V=W_V, W_O=torch.empty(h, e, d), b_Q=b_Q, b_K=b_K, b_V=b_V, b_O=torch.zeros(d)
        )
        if not cfg.attn_only:
            self.ln2 = _norm(cfg)
            self.mlp = Parameters(
                W_in=torch.empty(d, m), b_in=torch.zeros(m), W_out=torch.empty(m, d), b_out=torch.zeros(d)
            )

    def run(self, x: Stream, points: HookPoints) -> Stream:
        points = points.below(self.name)
        parts = {name: weights(part) for name, part in self._modules.items()}
        x = points("hook_resid_pre", x)
        inputs = [normalized(x, parts["ln1"], self.cfg, points.below("ln1."))] * 3
        for i, name in enumerate(("hook_q_input", "hook_k_input", "hook_v_input") if points.busy else ()):
            if points.used(name):  # every head gets a copy of the stream for itself
                copies = points(name, x[:, :, None].expand(-1, -1, self.cfg.n_heads, -1))
                inputs[i] = normalized(copies, parts["ln1"], self.cfg)
        x = x + points("hook_attn_out", attention_layer(parts["attn"], inputs, points.below("attn.")))
        if not self.cfg.attn_only:
            x = points("hook_resid_mid", x)
            x_mlp = normalized(points("hook_mlp_in", x), parts["ln2"], self.cfg, points.below("ln2."))
            x = x + points("hook_mlp_out", mlp_layer(parts["mlp"], x_mlp, self.act, points.below("mlp.")))
        return points("hook_resid_post", x)


class Transformer(nn.Module):
    """A decoder-only transformer: tokens in, logits out.

    Weights start normal with standard deviation 0.02, smaller by sqrt(2 n_layers) where they write into the
    stream (Radford et al. 2019, section 2.3); biases start at zero.

    >>> model = Transformer(Config(n_layers=2, d_model=32, n_ctx=16, d_head=8, n_heads=4, d_vocab=100, d_mlp=64))
    >>> model(torch.randint(100, (5, 16))).shape
    torch.Size([5, 16, 100])
    """

    def __init__(self, cfg: Config, generator: torch.Generator | None = None):
        super().__init__()
        self.cfg = cfg
        self.embed = Parameters(W_E=torch.empty(cfg.d_vocab, cfg.d_model))
        self.pos_embed = Parameters(W_pos=torch.empty(cfg.n_ctx, cfg.d_model))
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
        self.ln_final = _norm(cfg)
        self.unembed = Parameters(W_U=torch.empty(cfg.d_model, cfg.d_vocab), b_U=torch.zeros(cfg.d_vocab))
        self.attached: dict[str, list[HookFunction]] = {}
        self.hook_names, self.costly_hook_names = _hook_names(cfg)
        self.tokenizer: Any = None
        for name, parameter in self.named_parameters():
            last = name.rpartition(".")[2]
            if last.startswith("W_"):
                writes = last in ("W_O", "W_out")
                nn.init.normal_(
                    parameter, std=0.02 / math.sqrt(2 * cfg.n_layers) if writes else 0.02, generator=generator
                )

    def forward(self, inputs: Tensor, *, start_at_layer: int = 0, stop_at_layer: int | None = None) -> Tensor:
        """Logits [batch, pos, d_vocab] for tokens [batch, pos]; tokens [pos] count as a batch of one.

        With `stop_at_layer` the residual stream before that layer, [batch, pos, d_model]; it, or any other such
        stream, is what `inputs` must be if `start_at_layer` is given.

        Raises:
            TypeError: tokens that are not whole numbers, or a stream of another dtype than the weights.
            ValueError: a token id out of range, a sequence longer than `n_ctx` or empty, another device, a
                layer that does not exist.
        """
        return self.run(inputs, HookPoints(self.attached), start_at_layer, stop_at_layer)

    def run(self, inputs: Tensor, points: HookPoints, start_at_layer: int, stop_at_layer: int | None) -> Tensor:
        """`forward` with its hook points given, which is what `run_with_cache` calls."""
        start, stop = start_at_layer, self.cfg.n_layers if stop_at_layer is None else stop_at_layer
        if not 0 <= start <= stop <= self.cfg.n_layers:
            raise ValueError(f"layers go from 0 to {self.cfg.n_layers}: cannot start at {start} and stop at {stop}")
        x = self._stream(inputs) if start > 0 or inputs.ndim == 3 else self._embedded(inputs, points)
        blocks: list[Any] = list(self.blocks)
        for block in blocks[start:stop]:
            x = block.run(x, points)
        if stop_at_layer is not None:
            return x
        x = normalized(x, weights(self.ln_final), self.cfg, points.below("ln_final."))
        p = weights(self.unembed)
        return F.linear(x, p["W_U"].mT, p["b_U"])

    def _embedded(self, tokens: Tensor, points: HookPoints) -> Stream:
        W_E, W_pos = weights(self.embed)["W_E"], weights(self.pos_embed)["W_pos"]
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        if tokens.dtype not in (torch.int64, torch.int32) or tokens.ndim != 2:
            raise TypeError(
                f"tokens must be int64 or int32 of shape [batch, pos], not {tokens.dtype} of shape {list(tokens.shape)}"
            )
        if not 1 <= tokens.shape[1] <= self.cfg.n_ctx:
            raise ValueError(f"this model reads 1 to {self.cfg.n_ctx} tokens at once, not {tokens.shape[1]}")
        _same_device(tokens, W_E)
        try:
            if not tokens.is_cpu:  # there torch would not raise but stop the whole process
                self._check_ids(tokens)
            embed = points("hook_embed", F.embedding(tokens, W_E))
        except IndexError:
            self._check_ids(tokens)
            raise
        pos_embed = W_pos[: tokens.shape[1]]
        if points.used("hook_pos_embed"):
            pos_embed = points("hook_pos_embed", pos_embed.expand_as(embed))
        return embed + pos_embed

    def _check_ids(self, tokens: Tensor) -> None:
        wrong = tokens[(tokens < 0) | (tokens >= self.cfg.d_vocab)]
        if len(wrong):
            raise ValueError(f"token id {wrong[0].item()} is out of range: ids go from 0 to {self.cfg.d_vocab - 1}")

    def _stream(self, x: Tensor) -> Stream:
        W_E = self.embed.W_E
        if x.dtype != W_E.dtype:
            raise TypeError(f"a residual stream of {W_E.dtype} is needed here, not {x.dtype}")
        if x.ndim != 3 or x.shape[2] != self.cfg.d_model or not 1 <= x.shape[1] <= self.cfg.n_ctx:
            raise ValueError(
                f"a residual stream has shape [batch, pos <= {self.cfg.n_ctx}, {self.cfg.d_model}], not {list(x.shape)}"
            )
        _same_device(x, W_E)
        return x

    def stacked(self, name: str) -> Float[Tensor, "layer ..."]:
        """One parameter of all layers: `model.stacked("attn.W_Q")` is [layer, head, d_model, d_head]."""
        return torch.stack([block.get_parameter(name) for block in self.blocks])


def _same_device(x: Tensor, weights: Tensor) -> None:
    if x.device != weights.device:
        raise ValueError(f"the input is on {x.device}, the model on {weights.device}: move one with .to()")


def _hook_names(cfg: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All hook points in the order in which a forward pass comes by, and those that are computed only on demand."""
    scale = {"LN": ("hook_scale", "hook_normalized"), "LNPre": ("hook_scale", "hook_normalized"), None: ()}
    norm = scale[cfg.normalization_type]
    block = ["hook_resid_pre", *(f"ln1.{n}" for n in norm)]
    block += [f"attn.hook_{n}" for n in ("q", "k", "v", "attn_scores", "pattern", "z")] + ["hook_attn_out"]
    costly = ["hook_q_input", "hook_k_input", "hook_v_input", "attn.hook_result"]
    if not cfg.attn_only:
        block += ["hook_resid_mid", *(f"ln2.{n}" for n in norm), "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out"]
        costly += ["hook_mlp_in"]
    names = ["hook_embed", "hook_pos_embed"]
    names += [f"blocks.{layer}.{n}" for layer in range(cfg.n_layers) for n in [*block, "hook_resid_post"]]
    return (
        (*names, *(f"ln_final.{n}" for n in norm)),
        tuple(f"blocks.{layer}.{n}" for layer in range(cfg.n_layers) for n in costly),
    )
