"""How the shipped weight files are made: `python -m interp_edu train NAME`.

A recipe makes tensors and measures their quality, which the manifest states and the tests measure again.
Chapters train what takes seconds and load from `weights/` what takes longer.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from interp_edu import superposition, toy_training, weights

Tensors = dict[str, Tensor]


@dataclass
class Recipe:
    """`make` trains and returns the tensors; `measure` says how good such tensors are."""

    make: Callable[[], Tensors]
    measure: Callable[[Tensors], dict[str, float]]


def progress(label: str, steps: int, stream: TextIO = sys.stderr) -> Callable[[int], None]:
    """An `on_step` that keeps one line of progress up to date, with the time that is left."""
    start = time.monotonic()

    def show(step: int) -> None:
        if (step + 1) % max(1, steps // 100) == 0:
            done, spent = (step + 1) / steps, time.monotonic() - start
            end = "\n" if step + 1 == steps else ""
            stream.write(f"\r{label}: {done:4.0%}, {spent:.0f} s, {spent / done - spent:.0f} s left {end}")
            stream.flush()

    return show


SWEEP_SEEDS = (0, 1, 2)
SWEEP_SPARSITIES = 20


def superposition_sweep() -> Tensors:
    """Chapter 2: n=400 features in m=30 dimensions at 20 sparsities, 1/(1-S) from 1 to 10, over three seeds.

    Ten thousand steps are needed: after four thousand the plateau at one half is not there yet.
    """
    density = torch.logspace(0, -1, SWEEP_SPARSITIES)
    feature_prob = density[:, None].expand(-1, 400).contiguous()
    steps, models = 10_000, []
    for seed in SWEEP_SEEDS:
        generator = torch.Generator().manual_seed(seed)
        model = superposition.ToyModel.random(SWEEP_SPARSITIES, 400, 30, generator)
        show = progress(f"seed {seed}", steps)
        models.append(
            toy_training.train(model, feature_prob, steps=steps, batch=256, lr=1e-2, generator=generator, on_step=show)
        )
    W, b = torch.stack([model.W for model in models]), torch.stack([model.b for model in models])
    return {"W": W.half(), "b": b.half(), "feature_prob": density}


def sweep_quality(tensors: Tensors) -> dict[str, float]:
    """D* over the seeds: its range when dense, and in how many neighbouring sparsities all lie at one half."""
    d_star = torch.stack([superposition.dimensions_per_learned_feature(W.float()) for W in tensors["W"]])
    plateau = ((d_star - 0.5).abs() < 0.02).all(dim=0)
    return {
        "d_star_dense_lowest": d_star[:, 0].min().item(),
        "d_star_dense_highest": d_star[:, 0].max().item(),
        "sparsities_on_plateau": int(plateau.sum()),
        "plateau_is_one_stretch": bool((plateau.int().diff() != 0).sum() == 2),
    }


RECIPES = {"superposition_sweep": Recipe(superposition_sweep, sweep_quality)}


def remake(name: str, folder: Path = weights.FOLDER) -> None:
    """Runs a recipe, writes its safetensors file and its entry in the manifest.

    Raises KeyError for an unknown name.
    """
    from safetensors.torch import save

    if name not in RECIPES:
        raise KeyError(f"no recipe is called {name!r}; there are: {', '.join(RECIPES)}")
    start = time.monotonic()
    tensors = RECIPES[name].make()
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    (folder / f"{name}.safetensors").write_bytes(content)
    entries = weights.manifest(folder) if (folder / "MANIFEST.toml").exists() else {}
    quality = RECIPES[name].measure(tensors)
    entries[name] = {
        "recipe": f"python -m interp_edu train {name}",
        "what": (RECIPES[name].make.__doc__ or "").partition("\n")[0],
        "sha256": hashlib.sha256(content).hexdigest(),
        "seconds": round(time.monotonic() - start),
        "threads": torch.get_num_threads(),
        "quality": {key: round(value, 4) if isinstance(value, float) else value for key, value in quality.items()},
    }
    (folder / "MANIFEST.toml").write_text(_toml(entries), encoding="utf-8")
    print(f"wrote {name}.safetensors ({len(content) / 1e6:.1f} MB) and its entry in MANIFEST.toml")


def _toml(entries: dict[str, dict]) -> str:
    lines = ["# What the shipped weight files are. Written by `python -m interp_edu train NAME`.\n"]
    for name, entry in sorted(entries.items()):
        quality = entry.pop("quality")
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())]
        lines += [f"[{name}.quality]", *(f"{key} = {json.dumps(value)}" for key, value in quality.items()), ""]
    return "\n".join(lines)
