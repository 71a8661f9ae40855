"""What the residual stream says already (the logit lens), and who said it (direct logit attribution).

The logit lens reads the stream of every layer through the model's own unembedding (nostalgebraist 2020); a tuned lens
learns an affine map for each layer first (Belrose et al. 2023). Direct logit attribution splits a logit, or the
difference of two, into what each component wrote (Elhage et al. 2021): the stream is a sum, and the unembedding is
linear once the scale of the last LayerNorm is taken as it was in the run. *Direct* means: not through later components.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_edu.attention_heads import stream_parts
from interp_edu.hooks import Cache, run_with_cache
from interp_edu.transformer import Transformer, normalized, weights

Streams = Float[Tensor, "layer batch pos d_model"]
Ids = Int[Tensor, "batch"]
NORMS = ("own", "last", "none")


def streams(cache: Cache) -> Streams:
    """The stream before each layer, and after the last one: one entry more than there are layers."""
    n_layers = 1 + max((int(name.split(".")[1]) for name in cache if name.endswith("hook_resid_post")), default=0)
    return torch.stack([*(cache["resid_pre", i] for i in range(n_layers)), cache["resid_post", n_layers - 1]])


# The logit lens ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lens:
    """Predictions at every layer and position, as log probabilities. The last layer's are the model's own."""

    log_probs: Float[Tensor, "layer batch pos d_vocab"]

    def top(self, n: int = 1) -> Int[Tensor, "layer batch pos n"]:
        """The n likeliest tokens."""
        return self.log_probs.topk(n, dim=-1).indices

    def probability(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer batch pos"]:
        """The probability of a token of your choice at each position."""
        return self._of(tokens).exp()

    def rank(self, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "layer batch pos"]:
        """How many tokens are likelier: 0 if none."""
        return (self.log_probs > self._of(tokens)[..., None]).sum(dim=-1)

    def entropy(self) -> Float[Tensor, "layer batch pos"]:
        """In nats: 0 if all probability is on one token, log(d_vocab) if all are alike."""
        return -(self.log_probs.exp() * self.log_probs).sum(dim=-1)

    def kl_to_final(self) -> Float[Tensor, "layer batch pos"]:
        """KL(final || layer) in nats: what is lost by taking a layer's prediction for the model's."""
        final = self.log_probs[-1]
        return (final.exp() * (final - self.log_probs)).sum(dim=-1)

    def _of(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer batch pos"]:
        return self.log_probs.gather(-1, tokens.expand(len(self.log_probs), -1, -1)[..., None])[..., 0]


def logit_lens(model: Transformer, x: Streams, *, norm: str = "own") -> Lens:
    """Each stream through the unembedding.

    Args:
        x: streams, as `streams(cache)` gives them; the last one is the final one.
        norm: how they are normalised before: "own", by the last LayerNorm as if the model ended there, the usual
            choice; "last", with the scale that the final stream has; "none", not at all: softmax(x W_U + b_U).

    Raises:
        ValueError: another `norm`.
    """
    return Lens(_unembedded(model, x, norm).log_softmax(dim=-1))


def _unembedded(model: Transformer, x: Streams, norm: str) -> Float[Tensor, "layer batch pos d_vocab"]:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}, not {norm!r}")
    if norm == "own":
        x = normalized(x, weights(model.ln_final), model.cfg)
    elif norm == "last" and model.cfg.normalization_type is not None:
        p = weights(model.ln_final)
        scale = (x[-1].var(dim=-1, correction=0, keepdim=True) + model.cfg.eps).sqrt()
        x = (x - x.mean(dim=-1, keepdim=True)) / scale * p.get("w", 1.0) + p.get("b", 0.0)
    return x @ model.unembed.W_U + model.unembed.b_U


class TunedLens(nn.Module):
    """For each layer but the last an affine map x + x A + b, learned so that the lens predicts what the model will say.

    Belrose et al. 2023. It mends what a drift of basis or a missing constant does to the logit lens. What it
    finds can be read off a layer, which is not the same as what the model reads off it.
    """

    def __init__(self, n_layers: int, d_model: int):
        super().__init__()
        self.A = nn.Parameter(torch.zeros(n_layers, d_model, d_model))
        self.b = nn.Parameter(torch.zeros(n_layers, 1, 1, d_model))

    def forward(self, x: Streams) -> Streams:
        """The streams as the last layer would have them; the last one is left as it is."""
        early = x[:-1] + torch.einsum("lbpd,lde->lbpe", x[:-1], self.A) + self.b
        return torch.cat([early, x[-1:]])

    def fit(
        self, model: Transformer, draw: Callable[[int], Int[Tensor, "batch pos"]], *, steps: int, lr: float = 1e-3
    ) -> list[float]:
        """Learns from `draw(step)` to lower KL(final || layer), summed over layers; returns its mean at each step.

        The model itself is not changed. Adam, with a learning rate that falls to zero linearly.
        """
        optimizer, history = torch.optim.Adam(self.parameters(), lr=lr), []
        for step in range(steps):
            with torch.no_grad():
                x = streams(run_with_cache(model, draw(step), _IS_STREAM)[1])
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            with torch.enable_grad():
                loss = logit_lens(model, self(x)).kl_to_final()[:-1].mean(dim=(1, 2)).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=list(self.parameters()))
            optimizer.step()
            history.append(loss.item() / (len(x) - 1))
        return history


def _IS_STREAM(name: str) -> bool:
    return name.endswith(("hook_resid_pre", "hook_resid_post"))


# Direct logit attribution ------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How a logit, or a difference of two, is read off the final stream x at one position: x . direction + constant.

    `ln_bias` and `unembed_bias` are the two terms of the constant.
    """

    direction: Float[Tensor, "batch d_model"]
    ln_bias: Float[Tensor, "batch"]
    unembed_bias: Float[Tensor, "batch"]


def reading(
    model: Transformer, cache: Cache, right: Ids, wrong: Ids | None = None, position: int | Int[Tensor, "batch"] = -1
) -> Reading:
    """How the logit of `right`, or its difference to `wrong`, is read at a position, with this run's LayerNorm scale.

    Raises:
        ValueError: a token id or a position that does not exist.
    """
    final = _at(cache["resid_post", model.cfg.n_layers - 1], position)
    for ids in (right, wrong):
        if ids is not None and (len(ids) != len(final) or ids.min() < 0 or ids.max() >= model.cfg.d_vocab):
            raise ValueError(f"one token id from 0 to {model.cfg.d_vocab - 1} is needed for each of {len(final)} rows")
    W_U, b_U = model.unembed.W_U.T, model.unembed.b_U
    u, bias = W_U[right], b_U[right]
    if wrong is not None:
        u, bias = u - W_U[wrong], bias - b_U[wrong]
    if model.cfg.normalization_type is None:
        return Reading(u, torch.zeros_like(bias), bias)
    p = weights(model.ln_final)
    ln_bias = u @ p["b"] if "b" in p else torch.zeros_like(bias)
    u = u * p["w"] if "w" in p else u
    scale = _at(cache["ln_final.hook_scale"], position)
    return Reading((u - u.mean(dim=-1, keepdim=True)) / scale, ln_bias, bias)


@dataclass(frozen=True)
class Attribution:
    """What each part contributes, directly. The sum over parts is the logit, or the difference, exactly."""

    parts: tuple[str, ...]
    values: Float[Tensor, "part batch"]

    def of(self, part: str) -> Float[Tensor, "batch"]:
        """Of one part. Raises KeyError for a part that there is not."""
        if part not in self.parts:
            raise KeyError(f"no part is called {part!r}; there are: {', '.join(self.parts)}")
        return self.values[self.parts.index(part)]


def attribution(
    model: Transformer, cache: Cache, how: Reading, position: int | Int[Tensor, "batch"] = -1
) -> Attribution:
    """By component: embeddings, attention, MLPs, and the constants `ln_final` and `b_U`.

    If the cache holds `attn.hook_result`, heads stand alone, and the layers' biases b_O beside them.
    """
    names, x = stream_parts(model, cache, model.cfg.n_layers)
    values = torch.stack([(_at(part, position) * how.direction).sum(dim=-1) for part in x])
    return Attribution((*names, "ln_final", "b_U"), torch.cat([values, torch.stack([how.ln_bias, how.unembed_bias])]))


def by_source(
    model: Transformer, cache: Cache, how: Reading, position: int | Int[Tensor, "batch"] = -1
) -> Float[Tensor, "layer head batch key"]:
    """What every head contributes, by the position that it took it from. The sum over `key` is the head's part."""
    found = []
    for layer in range(model.cfg.n_layers):
        W_O = model.get_parameter(f"blocks.{layer}.attn.W_O")
        worth = torch.einsum(
            "hed,bd,bkhe->hbk", W_O, how.direction, cache["v", layer]
        )  # in this order: no d_model per key
        found.append(worth * _at(cache["pattern", layer].transpose(1, 2), position).transpose(0, 1))
    return torch.stack(found)


def by_neuron(
    model: Transformer, cache: Cache, how: Reading, position: int | Int[Tensor, "batch"] = -1
) -> Float[Tensor, "layer batch d_mlp"]:
    """What every neuron contributes; with its layer's b_out they sum to the MLP's part.

    Raises ValueError for a model without MLPs.
    """
    if model.cfg.attn_only:
        raise ValueError("this model has no MLPs, and so no neurons")
    layers = range(model.cfg.n_layers)
    W_out = torch.stack([model.get_parameter(f"blocks.{layer}.mlp.W_out") for layer in layers])
    post = torch.stack([_at(cache["post", layer], position) for layer in layers])
    return post * torch.einsum("lmd,bd->lbm", W_out, how.direction)


@torch.no_grad()
def word_effects(model: Transformer, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
    """By how much each direction in the stream raises each word's logit directly, per unit of length.

    The last LayerNorm's weights are applied and its scale left out; the mean over words is taken away.
    """
    if model.cfg.normalization_type is not None:
        directions = (directions - directions.mean(dim=1, keepdim=True)) * weights(model.ln_final).get("w", 1)
    logits = directions @ weights(model.unembed)["W_U"]
    return logits - logits.mean(dim=1, keepdim=True)


def _at(x: Float[Tensor, "batch pos ..."], position: int | Int[Tensor, "batch"]) -> Float[Tensor, "batch ..."]:
    """Each row's entry at the position, or at the row's own position."""
    n = x.shape[1]
    where = torch.as_tensor(position).expand(len(x))
    if (where < -n).any() or (where >= n).any():
        raise ValueError(f"positions go from {-n} to {n - 1}: got {where.tolist()}")
    return x[torch.arange(len(x)), where]
