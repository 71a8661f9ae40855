"""Choose a layer and a word of a text, and see what the stream there says will come next."""

import hashlib
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template

import torch
from jaxtyping import Float
from torch import Tensor


def refuse_unless_probabilities(log_probs: Float[Tensor, "layer pos d_vocab"]) -> None:
    """Raises ValueError unless these are finite logarithms of probabilities that sum to one at each layer and place."""
    if log_probs.ndim != 3 or 0 in log_probs.shape:
        raise ValueError(f"log_probs must be [layer, pos, d_vocab], none of them 0: got {[*log_probs.shape]}")
    if not log_probs.isfinite().all():
        raise ValueError("log_probs must be finite numbers")
    off = (log_probs.logsumexp(dim=-1).exp() - 1).abs().max().item()
    if off > 1e-3:
        raise ValueError(f"log_probs must be log probabilities, whose exponentials sum to 1: they are off by {off:.2g}")


def percent(p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """From 10 % on without decimals, below with one."""
    p = 100 * p.double()
    return torch.where(p < 9.95, p.round(decimals=1), p.round())


def nats(x: Float[Tensor, "layer pos"]) -> list[float]:
    """Layer by layer, to the hundredth; rounding errors below 0, and -0, are 0."""
    return x.double().clamp(min=0).abs().round(decimals=2).flatten().tolist()


def lens_viewer(
    log_probs: Float[Tensor, "layer pos d_vocab"],
    words: Sequence[str],
    vocab: Sequence[str],
    *,
    label: str,
    alt: str,
    layers: Sequence[str] | None = None,
    top: int = 5,
    select: tuple[int, int] | None = None,
) -> str:
    """HTML that shows what a logit lens reads at every layer and position of one text; the last layer is the model's.

    `label` is its title; `alt` tells those who cannot see it what it is. `vocab` has a string for each token, `layers`
    a name for each layer ("before 0", "before 1", ..., "end"). The cell `select` (layer, position), at first the last
    of both, is told in full: the `top` likeliest tokens, the entropy, KL(end || layer), and the rank of the word that
    comes next, for which each word but the first must be in `vocab` once. Raises ValueError for what does not match.
    """
    refuse_unless_probabilities(log_probs)
    n_layers, n, d_vocab = log_probs.shape
    if layers is None:
        layers = [*(f"before {i}" for i in range(n_layers - 1)), "end"]
    for name, given, wanted in [("words", words, n), ("layers", layers, n_layers), ("vocab", vocab, d_vocab)]:
        if len(given) != wanted:
            raise ValueError(f"{name} must be {wanted} for log_probs {[*log_probs.shape]}: got {len(given)}")
    if not 1 <= top <= d_vocab:
        raise ValueError(f"top must be from 1 to {d_vocab}, the size of the vocabulary: got {top}")
    layer, pos = select = (n_layers - 1, n - 1) if select is None else select
    if not (0 <= layer < n_layers and 0 <= pos < n):
        raise ValueError(f"select must be (layer, pos), counted from 0, of {n_layers} layers, {n} words: got {select}")
    vocab = list(vocab)
    for word in words[1:]:
        if vocab.count(word) != 1:
            raise ValueError(f"each word that comes next must be in vocab once: {word!r} is {vocab.count(word)} times")

    log_probs = log_probs.detach().float()
    probs = log_probs.exp()
    p, ids = probs.topk(top, dim=-1)
    following = torch.tensor([vocab.index(word) for word in words[1:]], dtype=torch.long, device=log_probs.device)
    of_following = log_probs[:, :-1].gather(-1, following.expand(n_layers, -1)[..., None])
    used, places = ids.unique(return_inverse=True)
    data = {
        "words": list(words),
        "layers": list(layers),
        "tokens": [vocab[i] for i in used.tolist()],
        "top": places.flatten(0, 1).tolist(),
        "percent": percent(p).flatten(0, 1).tolist(),
        "entropy": nats(-(probs * log_probs).sum(dim=-1)),
        "kl": nats((probs[-1] * (log_probs[-1] - log_probs)).sum(dim=-1)),
        "rank": (log_probs[:, :-1] > of_following).sum(dim=-1).tolist(),
        "most": round(math.log(d_vocab), 2),
        "first": [layer, pos],
    }
    # In a script "</script>" ends it and "<!--" hides its end: JSON may write their first letter otherwise.
    encoded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    name = "ie-" + hashlib.sha256("\0".join([encoded, label, alt]).encode()).hexdigest()[:8]
    template = Template((Path(__file__).parent / "lens.html").read_text(encoding="utf-8"))
    return template.substitute(id=name, data=encoded, label=html.escape(label), alt=html.escape(alt))
