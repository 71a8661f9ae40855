"""Choose a head and a word of a text, and see where the head looks from there, or who looks at the word."""

import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

import torch
from jaxtyping import Float
from torch import Tensor


def refuse_unless_causal(given: Float[Tensor, "layer head query key"], name: str) -> None:
    """Raises ValueError unless there is a finite, not negative number for each query and each key up to it."""
    if given.ndim != 4 or given.shape[2] != given.shape[3]:
        raise ValueError(f"{name} must be [layer, head, query, key] with as many queries as keys: got {[*given.shape]}")
    if not given.isfinite().all():
        raise ValueError(f"{name} must be finite numbers")
    if (given < 0).any() or given.triu(1).any():
        raise ValueError(f"{name} must be 0 where the key comes after the query, and nowhere negative")


def hundredths(shares: Float[Tensor, "layer head query key"]) -> list[list[int]]:
    """A list for each head: its lower triangle, row by row, in hundredths."""
    query, key = torch.tril_indices(*shares.shape[2:], device=shares.device)
    return (shares.flatten(0, 1)[:, query, key].float() * 100).round().int().tolist()


def attention_viewer(
    patterns: Float[Tensor, "layer head query key"],
    words: Sequence[str],
    *,
    label: str,
    alt: str,
    select: tuple[int, int] = (0, 0),
    values: Float[Tensor, "layer head query key"] | None = None,
) -> str:
    """HTML that shows the causal attention of all heads on one text, at first that of the head `select` (layer, head).

    `label` is its title; `alt` tells those who cannot see it what it is. `values` are the lengths of what is moved,
    weight times length of the value's output: given them, the reader can switch to these, as shares of each head's
    largest. Raises ValueError for shapes that do not match and for numbers that cannot be causal attention.
    """
    refuse_unless_causal(patterns, "patterns")
    layers, heads, n = patterns.shape[:3]
    if (patterns > 1.01).any():
        raise ValueError("patterns must be attention weights, at most 1")
    if len(words) != n or n == 0:
        raise ValueError(f"one word for each position, at least one: got {len(words)} words for {n} positions")
    if not (0 <= select[0] < layers and 0 <= select[1] < heads):
        raise ValueError(
            f"select must be (layer, head), counted from 0, of {layers} layers of {heads} heads: got {select}"
        )
    views = [hundredths(patterns)]
    if values is not None:
        refuse_unless_causal(values, "values")
        if values.shape != patterns.shape:
            raise ValueError(f"values must have the shape of patterns {[*patterns.shape]}: got {[*values.shape]}")
        largest = values.float().amax(dim=(2, 3), keepdim=True)
        views.append(hundredths(values / largest.clamp(min=1e-12)))
    data = {"words": list(words), "heads": heads, "first": select[0] * heads + select[1], "views": views}
    # In a script "</script>" ends it and "<!--" hides its end: JSON may write their first letter otherwise.
    encoded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    name = "ie-" + hashlib.sha256("\0".join([encoded, label, alt]).encode()).hexdigest()[:8]
    template = Template((Path(__file__).parent / "attention.html").read_text(encoding="utf-8"))
    return template.substitute(id=name, data=encoded, label=html.escape(label), alt=html.escape(alt))
