"""How the shipped files in `weights/` are made: `python -m interp_edu train NAME`, or `measure NAME MODEL`.

A recipe makes tensors and measures their quality, which the manifest states and the tests measure again.
Chapters train what takes seconds and load from `weights/` what takes longer.
"""

import hashlib
import itertools
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from interp_edu import (
    factual_recall,
    induction_heads,
    measurements,
    pretrained,
    superposition,
    tinyworld,
    toy_training,
    weights,
)
from interp_edu.sae_recipe import sae_models, sae_quality, toy_quality, toy_saes
from interp_edu.tinyworld import BOS
from interp_edu.training import Tensors, course_model, course_quality, progress, train_language_model
from interp_edu.transformer import Transformer


@dataclass
class Recipe:
    """`make` trains and returns the tensors, `measure` says how good such tensors are.

    `make` may keep its state in the file that it is given, and go on from there if it was interrupted. If the command
    is `measure`, nothing is trained, and `make` is given the model to measure instead.
    """

    what: str
    make: Callable[[Path], Tensors]
    measure: Callable[[Tensors], dict[str, float]]
    command: str = "train"


# Chapter 6's small models ---------------------------------------------------------------------------

SMALL_STEPS = 700
SMALL_CHECKPOINTS = (0, 40, 80, 100, 120, 140, 160, 180, 200, 240, 320)  # of the first seed's "phrases-2l"
CURVE_EVERY = 10
DISTANCES = (8, 12)


def small_models(_: Path) -> Tensors:
    """Attention-only models of one and two layers on phrases, and of two layers on words that repeat at a distance.

    Each over three seeds: their weights at the end, the first one's on the way, and what was measured on the way.
    """
    tensors: Tensors = {}
    for name in pretrained.SMALL:
        curves: list[Tensors] = []
        for seed in pretrained.COURSE_SEEDS:
            weights_at, curve = train_small(name, seed)
            kept = (*SMALL_CHECKPOINTS, SMALL_STEPS) if name == pretrained.SMALL[0] and seed == 0 else (SMALL_STEPS,)
            for step in kept:
                at = f"{name}.{seed}" if step == SMALL_STEPS else f"{name}.{seed}@{step}"
                tensors |= {f"{at}.{key}": value.half() for key, value in weights_at[step].items()}
            curves.append(curve)
        for key in curves[0]:
            tensors[f"curves.{name}.{key}"] = torch.stack([curve[key] for curve in curves]).half()
    return tensors


def train_small(name: str, seed: int) -> tuple[dict[int, Tensors], Tensors]:
    """A small model's weights at the steps that may be kept, and every `CURVE_EVERY` steps what was measured."""
    model = Transformer(pretrained.small_config(name), torch.Generator().manual_seed(seed))
    show, weights_at, curve = progress(f"{name}, seed {seed}", SMALL_STEPS), {}, []

    def watch(step: int) -> None:
        done = step + 1
        if done % CURVE_EVERY == 0:
            curve.append(small_measured(model, name))
        if done in (*SMALL_CHECKPOINTS, SMALL_STEPS):
            weights_at[done] = {key: value.detach().clone() for key, value in model.state_dict().items()}
        if done:
            show(step)

    watch(-1)
    train_language_model(model, partial(small_rows, name, seed), steps=SMALL_STEPS, on_step=watch)
    return weights_at, {key: torch.stack([measured[key] for measured in curve]) for key in curve[0]}


def small_rows(name: str, seed: int, step: int, rows: int = 64) -> Int[Tensor, "batch pos"]:
    """What a small model reads at a step of its training: phrases, or words that repeat after 8 to 12 words."""
    cfg, generator = pretrained.small_config(name), torch.Generator().manual_seed(10_000 * seed + step)
    length, d_vocab = cfg.n_ctx - 1, cfg.d_vocab
    if name.startswith("phrases"):
        return induction_heads.phrase_tokens(rows, length, d_vocab, generator=generator)
    periods = torch.randint(DISTANCES[0], DISTANCES[1] + 1, (rows,), generator=generator).tolist()
    return torch.cat(
        [
            induction_heads.repeated_tokens(1, period, d_vocab, times=length, generator=generator)[:, : cfg.n_ctx]
            for period in periods
        ]
    )


@torch.no_grad()
def small_measured(model: Transformer, name: str) -> Tensors:
    """Losses [next] on rows that the model never saw, and on repeated random words the heads' scores [layer, head]."""
    rows = small_rows(name, seed=-1, step=0, rows=200)
    repeats = induction_heads.repeated_tokens(
        100, 11 if name.startswith("distances") else 23, model.cfg.d_vocab, generator=torch.Generator().manual_seed(0)
    )
    return {
        "losses": induction_heads.token_losses(model, rows).mean(dim=0),
        "previous": induction_heads.attention_scores(model, repeats, induction_heads.before(repeats)),
        "induction": induction_heads.attention_scores(model, repeats, induction_heads.after_match(repeats)),
    }


def small_quality(tensors: Tensors) -> dict[str, float]:
    """At the end of training, the worst of three seeds: of each kind the late loss and the best head's scores."""
    found = {}
    for name in pretrained.SMALL:
        losses, previous, induction = (
            tensors[f"curves.{name}.{key}"].float()[:, -1] for key in ("losses", "previous", "induction")
        )
        key = name.replace("-", "_")
        found[f"{key}_late_loss_highest"] = losses[:, -6:].mean(dim=1).max().item()
        if name == "phrases-2l":
            found[f"{key}_previous_lowest"] = previous.flatten(1).max(dim=1).values.min().item()
            found[f"{key}_induction_lowest"] = induction.flatten(1).max(dim=1).values.min().item()
        else:
            found[f"{key}_induction_highest"] = induction.max().item()
    return found


# Chapter 10's models --------------------------------------------------------------------------------

RECALL_STEPS = 2000
REGISTER = 0.5  # the share of sentences that are entries of the register


def recall_models(_: Path) -> Tensors:
    """Models of the course model's shape that read nothing but facts, with and without the register, three seeds each.

    They start from small random weights, not from the course model's own start. From that one, with its positions and
    its MLPs that write nothing yet, the same rows led to a look-up at the last word of the prompt (one seed tried).
    """
    tensors: Tensors = {}
    for name, seed in itertools.product(pretrained.RECALL, pretrained.COURSE_SEEDS):
        model = Transformer(tinyworld.CONFIG, torch.Generator().manual_seed(seed))
        show, rows = progress(f"{name}, seed {seed}", RECALL_STEPS), partial(recall_rows, name, seed)
        train_language_model(model, rows, steps=RECALL_STEPS, on_step=show)
        tensors |= {f"{name}.{seed}.{key}": value.detach().half() for key, value in model.state_dict().items()}
    return tensors


def recall_rows(name: str, seed: int, step: int, rows: int = 32) -> Int[Tensor, "batch pos"]:
    """Facts in their paraphrases, in three of five those about people with an aside about somebody else (in half of
    these a namesake); and for "recall" entries of a register, name and one answer: `Clara Stone piano.`"""
    rng = random.Random(f"{name} {seed} {step}")
    found: list[list[str]] = []
    people = sorted({fact.subject for fact in tinyworld.FACTS if fact.subject[0] in tinyworld.FIRST})
    for _ in range(rows):
        words: list[str] = []
        while len(words) < tinyworld.N_CTX - 1:
            fact = rng.choice(tinyworld.FACTS)
            if rng.random() < (REGISTER if name == "recall" else 0):
                words += [*fact.subject, fact.answer, "."]
                continue
            aside, told = "", [n for n in range(6) if not tinyworld.held_out_paraphrase(fact, n)]
            if fact.subject in people and rng.random() < 0.6:
                shared = 1 if rng.random() < 0.5 else 0
                others = [y for y in people if sum(a == b for a, b in zip(y, fact.subject, strict=True)) == shared]
                aside = rng.choice(tinyworld.ASIDES).format(Y=" ".join(rng.choice(others)))
            words += tinyworld.tell(fact, rng.choice(told), aside).words
        found.append([BOS, *words[: tinyworld.N_CTX - 1]])
    return torch.tensor([[tinyworld.TOKENIZER.ids[word] for word in row] for row in found])


@torch.no_grad()
def recall_quality(tensors: Tensors) -> dict[str, float]:
    """Of each kind, over seeds: how many facts are right, and how many a transplant of MLP 0's output moves.

    The facts are where people live, asked with an aside; the transplant is at the last word of the subject, from
    somebody who lives elsewhere and shares neither name. (With a common name, moving the other alone would do.)
    """
    facts = [f for f in tinyworld.FACTS if f.relation == "home" and f.subject != ("Otto", "Marsh")]
    random.Random(0).shuffle(facts)
    q, donors = factual_recall.strangers(tinyworld.TOKENIZER, facts, 0, ", unlike Otto Marsh ,")
    quality: dict[str, float] = {}
    for name in pretrained.RECALL:
        right, moved = [], []
        for seed in pretrained.COURSE_SEEDS:
            model, prefix = Transformer(tinyworld.CONFIG), f"{name}.{seed}."
            model.load_state_dict({k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)})
            says = factual_recall.transplant(model, q, donors, ["blocks.0.hook_mlp_out"], q.subject[1:]).argmax(dim=1)
            right.append((q.asked(model).argmax(dim=1) == q.answers).double().mean().item())
            moved.append((says == donors.answers).double().mean().item())
        key = name.replace("-", "_")
        quality |= {f"{key}_right_lowest": min(right)}
        quality |= {f"{key}_moved_lowest": min(moved), f"{key}_moved_highest": max(moved)}
    return quality


# Chapter 2's sweep -------------------------------------------------------------------------------

SWEEP_SEEDS = (0, 1, 2)
SWEEP_SPARSITIES = 20


def superposition_sweep(_: Path) -> Tensors:
    """The models of the sweep over sparsities.

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


RECIPES = {
    "superposition_sweep": Recipe(
        "Chapter 2: n=400 features in m=30 dimensions at 20 sparsities, 1/(1-S) from 1 to 10, over three seeds.",
        superposition_sweep,
        sweep_quality,
    ),
    **{
        f"tinyworld{f'_{seed}' if seed else ''}": Recipe(
            f"The course model, seed {seed}, at float16.", partial(course_model, seed), course_quality
        )
        for seed in range(3)
    },
    "small": Recipe(
        "Chapter 6: attention-only models of one and two layers on phrases or on fixed distances, over three seeds.",
        small_models,
        small_quality,
    ),
    "recall": Recipe(
        "Chapter 10: the course model's shape on facts alone, with and without a register, over three seeds each.",
        recall_models,
        recall_quality,
    ),
    "toy_saes": Recipe(
        "Chapter 3: sparse autoencoders of three kinds in three worlds of 64 known features, and of features in pairs.",
        toy_saes,
        toy_quality,
    ),
    "features": Recipe(
        "Chapter 11: sparse autoencoders of the course models and untrained ones, with other sizes, another start, L1.",
        sae_models,
        sae_quality,
    ),
    "gpt2_attention": Recipe(
        "Chapters 5 and 6: composition of all heads of GPT-2 small, from its attention weights.",
        measurements.gpt2_attention,
        measurements.quality,
        command="measure",
    ),
}


def remake(name: str, folder: Path = weights.FOLDER, source: str = "") -> None:
    """Runs a recipe, writes its safetensors file and its entry in the manifest; `source` is a model to be measured.

    Raises KeyError for an unknown name.
    """
    from safetensors.torch import save

    if name not in RECIPES:
        raise KeyError(f"no recipe is called {name!r}; there are: {', '.join(RECIPES)}")
    start = time.process_time()
    recipe = RECIPES[name]
    unfinished = folder / f"{name}.unfinished"
    tensors = recipe.make(Path(source) if recipe.command == "measure" else unfinished)
    quality = recipe.measure(tensors)
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    (folder / f"{name}.safetensors").write_bytes(content)
    entries = weights.manifest(folder) if (folder / "MANIFEST.toml").exists() else {}
    entries[name] = {
        "recipe": f"python -m interp_edu {recipe.command} {name}{' MODEL' if recipe.command == 'measure' else ''}",
        "what": recipe.what,
        "sha256": hashlib.sha256(content).hexdigest(),
        "cpu_seconds": round(time.process_time() - start),
        "threads": torch.get_num_threads(),
        "quality": {key: round(value, 4) if isinstance(value, float) else value for key, value in quality.items()},
    }
    (folder / "MANIFEST.toml").write_text(_toml(entries), encoding="utf-8")
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"wrote {name}.safetensors ({len(content) / 1e6:.1f} MB) and its entry in MANIFEST.toml")


def _toml(entries: dict[str, dict]) -> str:
    lines = ["# What the shipped weight files are. Written by `python -m interp_edu train NAME`.\n"]
    for name, entry in sorted(entries.items()):
        quality = entry.pop("quality")
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())]
        lines += [f"[{name}.quality]", *(f"{key} = {json.dumps(value)}" for key, value in quality.items()), ""]
    return "\n".join(lines)
