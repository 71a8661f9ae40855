"""Speed of patching: our sweeps against one full forward pass for each patch, and attribution against one gradient.

    python benchmarks/patching.py [--threads 1] [--rounds 5]

What a sweep is measured against: the same patches one at a time with our own hooks, and, where it is installed,
TransformerLens's helpers on the same weights. Everybody is given the activations to be patched in; a row says how long
it takes to cache them (both runs, which `Patching` does when it is made). Attribution is measured against one forward
and one backward pass, and includes the estimates for all sites.

All take turns within a round, so that a busy machine slows them alike. A row shows the median over rounds of each
round's ratio, with the quartiles: how many times as long as the sweep it takes.
"""

import argparse
import importlib.util
import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch

from interp_edu.hooks import hooked
from interp_edu.metrics import logit_difference
from interp_edu.patching import SITES, Patching
from interp_edu.transformer import Config, Transformer

SHAPES = {
    "small": Config(n_layers=4, d_model=96, n_ctx=64, d_head=16, n_heads=6, d_vocab=330, d_mlp=192),
    "GPT-2": Config(n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_vocab=50257, d_mlp=3072),
}
POSITIONS, RIGHT, WRONG = 15, 3, 5


def one_by_one(patching: Patching, site: str) -> torch.Tensor:
    """A sweep as it is usually written: a hook and a full forward pass for each patch."""
    cfg, values = patching.model.cfg, []
    units = range(cfg.n_heads) if site == "z" else range(POSITIONS)
    for layer, i in itertools.product(range(cfg.n_layers), units):

        def hook(x, point, i=i):
            where = (slice(None), slice(None), i) if site == "z" else (slice(None), i)
            x[where] = patching.source[point.name][where]

        name = f"blocks.{layer}.attn.hook_z" if site == "z" else f"blocks.{layer}.hook_{site}"
        with torch.no_grad(), hooked(patching.model, [(name, hook)]):
            logits = patching.model(patching.tokens)
        values.append(logits[0, -1, RIGHT] - logits[0, -1, WRONG])
    return torch.stack(values).view(cfg.n_layers, -1)


def transformer_lens(model: Transformer, clean: torch.Tensor, corrupted: torch.Tensor) -> dict[str, Callable]:
    """TransformerLens's two helpers with the same weights; none where it is not installed."""
    if importlib.util.find_spec("transformer_lens") is None:
        return {}
    warnings.simplefilter("ignore")  # it announces its next version
    from transformer_lens import HookedTransformer, HookedTransformerConfig, patching

    cfg = model.cfg
    names = ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_vocab", "d_mlp", "act_fn", "normalization_type")
    lens = HookedTransformer(HookedTransformerConfig(**{name: getattr(cfg, name) for name in names}, device="cpu"))
    lens.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        _, cache = lens.run_with_cache(clean)

    def measure(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, RIGHT] - logits[0, -1, WRONG]

    def run(helper: Callable) -> torch.Tensor:
        with torch.no_grad():
            return helper(lens, corrupted, cache, measure)

    patching.tqdm = lambda steps, **_: steps  # no progress bar: it costs time and clutters the table
    return {
        "resid_pre": partial(run, patching.get_act_patch_resid_pre),
        "z": partial(run, patching.get_act_patch_attn_head_out_all_pos),
    }


def gradient(patching: Patching) -> torch.Tensor:
    """One forward and one backward pass, down to the embeddings."""
    with torch.enable_grad(), hooked(patching.model, [("hook_embed", lambda x, hook: x.requires_grad_())]):
        logits = patching.model(patching.tokens)
        value = logits[0, -1, RIGHT] - logits[0, -1, WRONG]
        value.backward()
    return value


def attribution(patching: Patching) -> None:
    """The estimates for every site, from scratch, and the two tables that the sweeps give."""
    patching.__dict__.pop("first_order", None)
    assert len(patching.first_order) == len(SITES) * patching.model.cfg.n_layers
    patching.attribution("resid_pre")
    patching.attribution("z")


def ratios(title: str, loops: dict[str, Callable], rounds: int) -> None:
    """Prints how long each loop takes, and how many times as long as the first in the same round."""
    (ours, run_ours), *others = loops.items()
    times: dict[str, list[float]] = {name: [] for name in loops}
    found: dict[str, list[float]] = {name: [] for name, _ in others}
    for _ in range(rounds):
        for name, loop in [(ours, run_ours), *others]:
            start = time.perf_counter()
            loop()
            times[name].append(time.perf_counter() - start)
        for name in found:
            found[name].append(times[name][-1] / times[ours][-1])
    print(f"{title:<24}{ours:<34}{statistics.median(times[ours]) * 1e3:>10.1f}", flush=True)
    for name, values in found.items():
        low, middle, high = statistics.quantiles(values, n=4)
        took = statistics.median(times[name]) * 1e3
        print(f"{'':<24}{name:<34}{took:>10.1f}   {middle:.1f} ({low:.1f} to {high:.1f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="for GPT-2's shape; five times as many for the small one")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="by default both")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.rounds} rounds, {POSITIONS} tokens")
    print(f"{'':<24}{'':<34}{'ms':>10}   times as long as the first (quartiles)")
    for shape in options.shape or SHAPES:
        cfg = SHAPES[shape]
        model = Transformer(cfg).requires_grad_(False)
        clean, corrupted = torch.randint(cfg.d_vocab, (2, 1, POSITIONS))
        patching = Patching(model, clean, corrupted, logit_difference(RIGHT, WRONG))
        lens = transformer_lens(model, clean, corrupted)
        attribution(patching)  # the others have their first turn when they are compared below
        rounds = options.rounds * (5 if shape == "small" else 1)
        for site, title in (
            ("resid_pre", f"{cfg.n_layers} x {POSITIONS} residual"),
            ("z", f"{cfg.n_layers} x {cfg.n_heads} heads"),
        ):
            loops = {
                "sweep": partial(patching.sweep, site),
                "our hooks, one by one": partial(one_by_one, patching, site),
            }
            if lens:
                loops["TransformerLens's helper"] = lens[site]
            raw = patching.sweep(site).raw
            assert all(torch.allclose(loop(), raw, atol=1e-4) for loop in list(loops.values())[1:])
            loops["(caching both runs)"] = partial(Patching, model, clean, corrupted, patching.metric)
            ratios(f"{shape}, {title}", loops, rounds)
        ratios(
            f"{shape}, attribution",
            {
                "one forward and one backward": partial(gradient, patching),
                "attribution, all sites": partial(attribution, patching),
            },
            rounds,
        )


if __name__ == "__main__":
    main()
