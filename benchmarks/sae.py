"""Speed of training sparse autoencoders: a whole step of ours against plain autograd and, where installed, the peers.

    python benchmarks/sae.py [--threads 1] [--rounds 7] [--shape small] [--shape GPT-2]

A step is the gradients of a batch, Adam, and what keeps directions at length 1. The floor is the five matrix products
that a ReLU autoencoder cannot do without, into tensors that are there already. Plain autograd is the loop as it is
usually written. Peers are SAELens 6 and dictionary_learning 0.1, as they come: SAELens leaves directions as long as
they get, and their trainers clip gradients or keep books on dead latents. (On a CPU, SAELens's sparse decoder works
only without its rescaling by decoder norms.)

All take turns within a round, so that a busy machine slows them alike. A table gives the least and the median time of
a step; below stand the medians over rounds of each round's ratio, with the quartiles. With one thread the clock is
the process's own (CPU time), which does not run while others have the core.
"""

import argparse
import importlib.util
import itertools
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from interp_edu.sae_training import train
from interp_edu.sparse_autoencoders import SAE

SHAPES = {"small": (96, 768, 2048), "GPT-2": (768, 6144, 4096)}  # d_in, d_sae, batch
K, SPARSITY, LR = 32, 0.1, 1e-4
FLOOR = "five products"
Step = Callable[[], object]


def five_products(x: Tensor, d_sae: int) -> Step:
    """Encode, decode, and the gradients of W_dec, f and W_enc."""
    W_enc, W_dec = torch.randn(x.shape[1], d_sae), torch.randn(d_sae, x.shape[1])
    f, to_f, x_hat = torch.empty(len(x), d_sae), torch.empty(len(x), d_sae), torch.empty_like(x)
    to_W_enc, to_W_dec = torch.empty_like(W_enc), torch.empty_like(W_dec)

    def step() -> None:
        torch.mm(x, W_enc, out=f)
        torch.mm(f, W_dec, out=x_hat)
        torch.mm(f.T, x_hat, out=to_W_dec)
        torch.mm(x_hat, W_dec.T, out=to_f)
        torch.mm(x.T, to_f, out=to_W_enc)

    return step


def autograd(x: Tensor, d_sae: int, k: int | None = None) -> Step:
    """The loop as it is usually written: ReLU with L1, or TopK with a dense decoder."""
    sae = SAE.random(x.shape[1], d_sae, k=k)
    W_enc, b_enc, W_dec, b_dec = (torch.nn.Parameter(p) for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    optimizer = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=LR)

    def step() -> None:
        pre = (x - b_dec if k else x) @ W_enc + b_enc
        if k:
            values, index = pre.topk(k, dim=-1, sorted=False)
            f = torch.zeros_like(pre).scatter(-1, index, values.relu())
        else:
            f = pre.relu()
        loss = ((f @ W_dec + b_dec - x) ** 2).sum(dim=1).mean()
        if not k:
            loss = loss + SPARSITY * f.sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
            optimizer.step()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    return step


def sae_lens(x: Tensor, d_sae: int, k: int | None = None, **settings: bool) -> Step:
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    if k:
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=d_sae, k=k, **settings))
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=x.shape[1], d_sae=d_sae, l1_coefficient=SPARSITY))
    cfg = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=len(x), lr=LR, lr_end=LR)
    trainer = SAETrainer(cfg, sae, itertools.repeat(x))
    return lambda: trainer.step(x)


def dictionary_learning(x: Tensor, d_sae: int, k: int | None = None) -> Step:
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {"steps": 10**6, "activation_dim": x.shape[1], "dict_size": d_sae, "layer": 0, "lm_name": "", "lr": LR}
    common |= {"device": "cpu"}
    trainer = TopKTrainer(k=k, **common) if k else StandardTrainer(l1_penalty=SPARSITY, **common)
    steps = itertools.count(1)  # in step 0 TopK looks for a geometric median
    return lambda: trainer.update(next(steps), x)


def contenders(x: Tensor, d_sae: int) -> dict[str, dict[str, Step]]:
    """The loops of each kind, ours first."""
    installed = {name for name in ("sae_lens", "dictionary_learning") if importlib.util.find_spec(name)}
    relu = {"autograd": autograd(x, d_sae)}
    top_k = {"autograd, dense decoder": autograd(x, d_sae, K)}
    if "sae_lens" in installed:
        relu["SAELens"] = sae_lens(x, d_sae)
        top_k["SAELens"] = sae_lens(x, d_sae, K)
        sparse = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
        top_k["SAELens, sparse decoder"] = sae_lens(x, d_sae, K, **sparse)
    if "dictionary_learning" in installed:
        relu["dictionary_learning"] = dictionary_learning(x, d_sae)
        top_k["dictionary_learning"] = dictionary_learning(x, d_sae, K)
    return {"ReLU": relu, f"TopK, k = {K}": top_k, "JumpReLU": {}}


def seconds(step: Step, steps: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(steps):
        step()
    return (clock() - start) / steps


def our_seconds(sae: SAE, x: Tensor, steps: int, clock: Callable[[], float]) -> float:
    """`train` as it is, from the end of its first step, which allocates, to the end of its last."""
    ends: list[float] = []
    train(sae, lambda step: x, steps=steps + 1, sparsity=SPARSITY, lr=LR, on_step=lambda step: ends.append(clock()))
    return (ends[-1] - ends[0]) / steps


def compare(shape: str, rounds: int, steps: int, clock: Callable[[], float]) -> None:
    """Prints one shape's table."""
    d_in, d_sae, batch = SHAPES[shape]
    x = torch.randn(batch, d_in)
    floor, groups = five_products(x, d_sae), contenders(x, d_sae)
    ours = dict(zip(groups, (SAE.random(d_in, d_sae, **kind) for kind in ({}, {"k": K}, {"jump": 0.1})), strict=True))
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        found = {("", FLOOR): seconds(floor, steps, clock)}
        for kind, loops in groups.items():
            found[kind, "ours"] = our_seconds(ours[kind], x, steps, clock)
            found |= {(kind, name): seconds(step, steps, clock) for name, step in loops.items()}
        if turn:  # the first is for warming up
            for key, value in found.items():
                times.setdefault(key, []).append(value)
    print(f"\n{shape}: {d_in} -> {d_sae}, batch {batch}, {rounds} rounds of {steps} step(s)")
    print(f"{'':<16}{'':<28}{'least ms':>10}{'median ms':>11}   times as long as ours (quartiles)")
    for (kind, name), values in times.items():
        ratios = [a / b for a, b in zip(values, times[kind or "ReLU", "ours"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        against = "" if name == "ours" else f"   {middle:.2f} ({low:.2f} to {high:.2f})"
        print(f"{kind:<16}{name:<28}{min(values) * 1e3:>10.1f}{statistics.median(values) * 1e3:>11.1f}{against}")
    ratios = [a / b for a, b in zip(times["ReLU", "ours"], times["", FLOOR], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    least = min(times["ReLU", "ours"]) / min(times["", FLOOR])
    print(
        f"our ReLU step over the {FLOOR}: {middle:.2f} ({low:.2f} to {high:.2f}); least over least {least:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="three times as many for the small shape")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="by default both")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers announce their next versions
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print(f"torch {torch.__version__}, {options.threads} thread(s)")
    for shape in options.shape or SHAPES:
        small = shape == "small"
        compare(shape, options.rounds * (3 if small else 1), 10 if small else 1, clock)


if __name__ == "__main__":
    main()
