"""Drag the sparsity and watch the feature directions of a two-dimensional toy model change."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

import torch
from jaxtyping import Float
from torch import Tensor


def align(frames: Float[Tensor, "frames 2 features"]) -> Float[Tensor, "frames 2 features"]:
    """Turns and mirrors each frame towards the one before, which changes nothing that the model computes."""
    aligned = [frames[0]]
    for W in frames[1:]:
        U, _, V = torch.linalg.svd(aligned[-1] @ W.T)
        aligned.append(U @ V @ W)
    return torch.stack(aligned)


def geometry_viewer(frames: Float[Tensor, "frames 2 features"], texts: Sequence[str], *, label: str, alt: str) -> str:
    """HTML with a slider over precomputed models: `texts[k]` says what frame k shows, `alt` what it all is.

    Raises ValueError if there is not one text for each frame.
    """
    if len(frames) != len(texts):
        raise ValueError(f"one text for each frame: got {len(texts)} texts for {len(frames)} frames")
    data = [
        {"w": [[round(v, 3) for v in column] for column in W.T.tolist()], "text": text}
        for W, text in zip(align(frames), texts, strict=True)
    ]
    encoded = json.dumps(data, separators=(",", ":"))
    name = "ie-" + hashlib.sha256(encoded.encode()).hexdigest()[:8]
    template = Template((Path(__file__).parent / "geometry.html").read_text(encoding="utf-8"))
    return template.substitute(id=name, frames=encoded, last=len(data) - 1, label=label, alt=alt)
