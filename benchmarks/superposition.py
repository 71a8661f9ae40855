"""Speed of training toy models: ours against the loop of the published notebook, side by side in one run.

    python benchmarks/superposition.py [--threads 1] [--rounds 5]

The reference loop is the one that toy-model notebooks share: two random draws per step (mask and magnitude), einsum
forward, importance-weighted loss, autograd, AdamW. Both train 10 instances on batches of 1,024. They take turns, so
that a busy machine slows both; a row shows the median over the rounds and the lowest and highest ratio.
"""

import argparse
import statistics
import time

import torch

from interp_edu.superposition import ToyModel
from interp_edu.toy_training import train

INSTANCES, BATCH = 10, 1024
SHAPES = [(5, 2), (80, 20), (400, 30)]
DENSITIES = [1.0, 0.1, 0.03, 0.01]


def train_reference(n: int, m: int, p: float, steps: int) -> None:
    """The published notebook's loop, written from its description."""
    W = torch.nn.Parameter(torch.randn(INSTANCES, m, n) / m**0.5)
    b = torch.nn.Parameter(torch.zeros(INSTANCES, n))
    importance, prob = torch.ones(INSTANCES, n), torch.full((INSTANCES, n), p)
    optimizer = torch.optim.AdamW([W, b], lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        magnitude = torch.rand(BATCH, INSTANCES, n)
        x = torch.where(torch.rand(BATCH, INSTANCES, n) <= prob, magnitude, torch.zeros(()))
        h = torch.einsum("...if,ihf->...ih", x, W)
        x_hat = torch.relu(torch.einsum("...ih,ihf->...if", h, W) + b)
        loss = (importance * (x - x_hat) ** 2).mean(dim=(0, 2)).sum()
        loss.backward()
        optimizer.step()


def train_ours(n: int, m: int, p: float, steps: int) -> None:
    """The same work by `interp_edu.toy_training.train`."""
    train(ToyModel.random(INSTANCES, n, m), torch.full((INSTANCES, n), p), steps=steps, batch=BATCH, lr=1e-3)


def seconds_per_step(loop, n: int, m: int, p: float, steps: int) -> float:
    start = time.perf_counter()
    loop(n, m, p, steps)
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.rounds} rounds, steps per second")
    print(f"{'n':>5}{'m':>4}{'density':>9}{'reference':>11}{'ours':>8}{'ratio':>8}   range")
    for p in DENSITIES:
        for n, m in SHAPES:
            steps = max(6, 12_000 // (n * m))
            reference, ours = [], []
            for loop in (train_reference, train_ours):
                loop(n, m, p, 3)
            for _ in range(options.rounds):
                reference.append(seconds_per_step(train_reference, n, m, p, steps))
                ours.append(seconds_per_step(train_ours, n, m, p, steps))
            ratios = [a / b for a, b in zip(reference, ours, strict=True)]
            speeds = [1 / statistics.median(times) for times in (reference, ours)]
            print(
                f"{n:>5}{m:>4}{p:>9g}{speeds[0]:>11.1f}{speeds[1]:>8.1f}{statistics.median(ratios):>8.2f}"
                f"   {min(ratios):.2f} to {max(ratios):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
