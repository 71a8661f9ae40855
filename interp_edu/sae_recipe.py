"""How chapters 3 and 11's autoencoders are made, and how to make your own: `python -m interp_edu train sae --help`.

Under torchrun the processes share the harvest and every batch, and the result is that of one process:
`torchrun --nproc-per-node 4 -m interp_edu train sae ...`.
"""

import argparse
import itertools
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from interp_edu import features, harvest, pretrained, tinyworld
from interp_edu.sae_training import train
from interp_edu.sparse_autoencoders import SAE, World, co_occurring, max_cosines
from interp_edu.training import Tensors, progress
from interp_edu.transformer import Transformer

# The book's ------------------------------------------------------------------------------------------

SAE_STEPS = 8000
SHARD_ROWS = 128
SAE_KINDS: dict[str, dict[str, Any]] = {  # name: latents and kind
    "resid": {"d_sae": 768, "k": 8},
    "mlp": {"d_sae": 768, "k": 8},
    "mlp2": {"d_sae": 768, "k": 8},
    "untrained": {"d_sae": 768, "k": 8},
    "resid-192": {"d_sae": 192, "k": 8},
    "resid-3072": {"d_sae": 3072, "k": 8},
    "resid-again": {"d_sae": 768, "k": 8, "seed": 3},
    "resid-relu": {"d_sae": 768, "sparsity": 3.0},
}


def course_rows(seed: int, shard: int, n: int = SHARD_ROWS) -> Int[Tensor, "batch pos"]:
    """Rows of the corpus for a shard of activations: drawn anew, neither those of training nor those of the scores."""
    return tinyworld.batch(random.Random(f"harvest {seed} {shard}"), tinyworld.TOKENIZER, n)


def sae_models(state: Path) -> Tensors:
    """TopK SAEs of course models at three sites and of untrained ones; of seed 0 other sizes, another start, and L1."""
    tensors: Tensors = {}
    for name, seed in itertools.product(SAE_KINDS, pretrained.COURSE_SEEDS):
        if seed and "-" in name:
            continue
        finished, activations = state / f"{name}.{seed}.pt", state / f"activations {name} {seed}"
        if not finished.exists():
            site, model = pretrained.SAES[name], _model(name, seed)
            rows, source = partial(course_rows, seed), f"tinyworld, harvest {seed}"
            store = harvest.harvest(model, site, rows, activations, shards=96, source=source)
            show = progress(f"{name}, seed {seed}", SAE_STEPS)
            settings = {"seed": seed, **SAE_KINDS[name]}
            sae = harvest.train_sae(store, steps=SAE_STEPS, resample_every=500, on_step=show, **settings)
            torch.save(sae.state(), finished)
            shutil.rmtree(activations)
        found = torch.load(finished, weights_only=True)
        tensors |= {f"{name}.{seed}.{key}": value.half() for key, value in found.items()}
    return tensors


def _model(name: str, seed: int) -> Transformer:
    return pretrained.untrained(seed) if name == "untrained" else pretrained.load("tinyworld", seed=seed)


def sae_quality(tensors: Tensors) -> dict[str, float]:
    """The worst of the seeds: variance unexplained, loss recovered against both ablations, dead latents."""
    tokens = tinyworld.batch(random.Random("quality"), tinyworld.TOKENIZER, 200)
    found: dict[str, float] = {}
    for name, seed in sorted({(name, int(seed)) for name, seed, _ in (key.split(".") for key in tensors)}):
        prefix = f"{name}.{seed}."
        sae = SAE.from_state({k.removeprefix(prefix): x.float() for k, x in tensors.items() if k.startswith(prefix)})
        measured = features.quality(_model(name, seed), pretrained.SAES[name], sae, tokens)
        key = name.replace("-", "_")
        worst = {"variance_unexplained": max, "dead": max}
        if name != "untrained":  # ablating what never learned anything costs nothing
            worst |= {"recovered_zero": min, "recovered_mean": min}
        for what, of in worst.items():
            found[f"{key}_{what}"] = of(found.get(f"{key}_{what}", measured[what]), measured[what])
    return found


# Chapter 3's -----------------------------------------------------------------------------------------

TOY_STEPS = 3000
TOY_SWEEPS: dict[str, tuple[float, ...]] = {  # kind: sparsities, for TopK k, for pairs how often the two come together
    "relu": (0.05, 0.1, 0.2, 0.4, 0.8),
    "topk": (1, 2, 3, 4, 8),
    "jump": (0.005, 0.01, 0.02, 0.05, 0.1),
    "pairs": (0.0, 0.5, 0.8, 1.0),
}
PAIRS_SPARSITY = 0.4


def toy_world(seed: int) -> World:
    """Chapter 3's worlds: 64 features in 32 dimensions, each on with probability 0.03."""
    return World.random(64, 32, 0.03, seed)


def toy_pairs(seed: int, together: float, step: int, batch: int = 1024) -> Float[Tensor, "batch d"]:
    """Activations of the same worlds whose features come in pairs (`co_occurring`)."""
    world, generator = toy_world(seed), torch.Generator().manual_seed(100_000 * seed + step)
    return co_occurring(batch, torch.full((64,), world.feature_prob), together, generator) @ world.directions


def toy_saes(_: Path) -> Tensors:
    """SAEs of 128 latents in three worlds, of each kind with settings from much too dense to much too sparse."""
    tensors: Tensors = {}
    for seed, (kind, settings) in itertools.product(range(3), TOY_SWEEPS.items()):
        for setting in settings:
            k, jump = int(setting) if kind == "topk" else None, 0.1 if kind == "jump" else None
            sparsity = {"topk": 0.0, "pairs": PAIRS_SPARSITY}.get(kind, setting)
            draw = partial(toy_pairs, seed, setting) if kind == "pairs" else toy_world(seed).activations
            sae = SAE.random(32, 128, torch.Generator().manual_seed(100 + seed), k=k, jump=jump)
            show = progress(f"{kind} {setting}, world {seed}", TOY_STEPS)
            train(sae, draw, steps=TOY_STEPS, sparsity=sparsity, on_step=show)
            tensors |= {f"{kind} {setting}|{seed}|{key}": value.half() for key, value in sae.state().items()}
    return tensors


def toy_sae(tensors: Tensors, kind: str, setting: float, seed: int) -> SAE:
    """One of them, out of the shipped tensors."""
    prefix = f"{kind} {setting}|{seed}|"
    return SAE.from_state({k.removeprefix(prefix): x.float() for k, x in tensors.items() if k.startswith(prefix)})


def toy_quality(tensors: Tensors) -> dict[str, float]:
    """The worst of three worlds: the share of features found (cosine above 0.95), at a good and at a bad setting."""
    found: dict[str, float] = {}
    for kind, setting in (("relu", 0.4), ("relu", 0.05), ("topk", 3), ("jump", 0.05)):
        shares = [
            (max_cosines(toy_world(s).directions, toy_sae(tensors, kind, setting, s).W_dec) > 0.95).double().mean()
            for s in range(3)
        ]
        name = f"{kind}_{setting}_found".replace(".", "")
        found |= {f"{name}_lowest": min(shares).item(), f"{name}_highest": max(shares).item()}
    return found


# Your own ------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `train sae`."""
    add = parser.add_argument
    add("--model", default="tinyworld", help="what `load` takes: tinyworld (default), gpt2, a folder")
    add("--model-seed", type=int, default=0, help="which of the shipped models (default 0)")
    add("--site", default="blocks.0.hook_mlp_out", help="the hook whose activation is taken apart")
    add("--text", type=Path, help="a text file to run the model on (default: the course corpus)")
    add("--latents", type=int, default=768, help="how many (default 768)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--k", type=int, help="TopK: how many are on (default 8)")
    kind.add_argument("--sparsity", type=float, help="ReLU: the weight of the L1 penalty, such as 2")
    add("--jump", type=float, help="JumpReLU, with --sparsity: where thresholds start, such as 0.05")
    add("--steps", type=int, default=5000)
    add("--batch", type=int, default=2048, help="samples in a step, over all processes")
    add("--lr", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    add("--shards", type=int, default=64, help="how many files of activations to harvest (default 64)")
    add("--rows", type=int, default=SHARD_ROWS, help="rows of text in each (default 128)")
    add("--folder", type=Path, required=True, help="where activations and the SAE go; a harvest found there goes on")


def train_own(options: argparse.Namespace) -> None:
    """Harvests, trains, writes `sae.safetensors` and `sae.json` (what it is and how good), and prints the latter.

    Raises FileExistsError if the folder holds an SAE, before anything is computed.
    """
    from safetensors.torch import save_file

    target, first = options.folder / "sae.safetensors", os.environ.get("RANK", "0") == "0"
    if target.exists():
        raise FileExistsError(f"{target} is there already: choose another folder, or move it away")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    try:
        model = pretrained.load(options.model, seed=options.model_seed)
        rows, source, most = _rows(model, options)
        if most is not None and options.shards > most:
            raise ValueError(f"{options.text} is enough for {most} shards of {options.rows} rows, not {options.shards}")
        show = progress("harvest", options.shards) if first else None
        store = harvest.harvest(
            model,
            options.site,
            rows,
            options.folder / "activations",
            shards=options.shards,
            source=source,
            on_step=show,
        )
        k = 8 if options.k is None and options.sparsity is None else options.k
        sae = harvest.train_sae(
            store,
            options.latents,
            steps=options.steps,
            k=k,
            jump=options.jump,
            sparsity=options.sparsity or 0.0,
            batch=options.batch,
            lr=options.lr,
            resample_every=max(1, options.steps // 10),
            seed=options.seed,
            on_step=progress("sae", options.steps) if first else None,
        )
        if first:
            save_file({key: value.contiguous() for key, value in sae.state().items()}, target)
            about = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
            quality = features.quality(model, options.site, sae, rows(options.shards - 1))
            about |= {"k": k, "quality": {key: x if math.isfinite(x) else None for key, x in quality.items()}}
            (options.folder / "sae.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
            print(json.dumps(about["quality"], indent=1))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _rows(model: Transformer, options: argparse.Namespace) -> tuple[Callable[[int], Tensor], str, int | None]:
    """The rows of each shard, what they are, and for how many shards there are enough (None: any number)."""
    if options.text is None:
        if model.tokenizer is not tinyworld.TOKENIZER:
            raise ValueError(f"{options.model} does not speak the course's words: give it a --text of its own")
        return partial(course_rows, options.seed, n=options.rows), f"tinyworld, harvest {options.seed}", None
    tokens = model.tokenizer.encode(options.text.read_text("utf-8"), bos=False)[0]
    length = model.cfg.n_ctx - 1
    whole = tokens[: len(tokens) // length * length].view(-1, length)
    whole = torch.cat([torch.full((len(whole), 1), model.tokenizer.bos), whole], dim=1)

    def of_shard(i: int) -> Tensor:
        return whole[i * options.rows : (i + 1) * options.rows]

    return of_shard, f"{options.text.name}, {len(tokens)} tokens", len(whole) // options.rows
