"""Training chapter 2's toy models, fast: the gradient by hand, sparse data drawn sparsely, all instances at once.

The published notebook's loop draws two uniform numbers for every entry and differentiates with autograd.
`benchmarks/superposition.py` runs both loops side by side.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from interp_edu.superposition import NeuronModel, ToyModel, check_probabilities, importance_weighted_loss

Sampler = Callable[[int, Generator], Tensor]
CACHE_FLOATS = 2**18  # instances are trained in groups whose batch of features fits into a core's 1 MiB or so of cache
SPARSE_BELOW = 0.06  # below this probability it is cheaper to draw only the active entries


def loss_gradient(
    W: Float[Tensor, "instances hidden features"],
    b: Float[Tensor, "instances features"],
    importance: Float[Tensor, "instances features"],
    x: Float[Tensor, "instances batch features"],
    active: list[Tensor] | None = None,
) -> tuple[Float[Tensor, "instances hidden features"], Float[Tensor, "instances features"]]:
    """The gradients of the summed losses by W and b, by hand. Note that x has instances first here.

    With e = (x_hat - x) where x_hat > 0 and else 0, and c = 2 importance / (batch features):
    grad_b = c sum(e), and W, which is used twice, gets h^T e c from reading out and (e c W^T)^T x from
    reading in. Importance only scales rows and columns of small matrices. `active` may list, per
    instance, the flat indices of the entries of x that are not zero: e differs from x_hat there only.
    """
    c = 2 * importance / (x.shape[1] * x.shape[2])
    h = torch.bmm(x, W.mT)
    x_hat = torch.baddbmm(b[:, None], h, W).relu_()
    if active is None:
        e = torch.ops.aten.threshold_backward(x_hat - x, x_hat, 0)  # one pass; several times faster than a mask
    else:
        e = x_hat
        for e_flat, x_flat, index in zip(e.flatten(1), x.flatten(1), active, strict=True):
            kept = e_flat[index]
            e_flat[index] = (kept - x_flat[index]) * (kept > 0)
    grad_b = c * e.sum(dim=1)
    grad_W = (h.mT @ e) * c[:, None] + (e @ (W * c[:, None]).mT).mT @ x
    return grad_W, grad_b


class _FeatureStream:
    """Endless batches of the features of `sample_features`, instances first, drawn into one buffer.

    The uniform numbers are NumPy's, which draws them in little more than half of torch's time.
    """

    def __init__(self, batch: int, feature_prob: Float[Tensor, "instances features"], generator: Generator):
        self.u = np.zeros((len(feature_prob), batch, feature_prob.shape[1]), dtype=np.float32)
        self.x = torch.from_numpy(self.u)  # the same memory
        self.rng = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, (), generator=generator))))
        self.prob = feature_prob.clamp_min(1e-12)
        self.probs = self.prob[:, 0].tolist()
        alike = bool((feature_prob == feature_prob[:, :1]).all())
        self.sparse = alike and max(self.probs) <= SPARSE_BELOW and self.x[0].numel() >= 2**15

    def draw(self) -> tuple[Tensor, list[Tensor] | None]:
        """A batch, and if it is sparse the flat indices of its active entries, by instance."""
        if not self.sparse:  # relu(1 - u / p) is zero, or with probability p uniform
            self.rng.random(out=self.u, dtype=np.float32)
            return self.x.div_(-self.prob[:, None]).add_(1).relu_(), None
        self.x.zero_()
        active = [_active_entries(row.numel(), p, self.rng) for row, p in zip(self.x, self.probs, strict=True)]
        for row, index in zip(self.x.flatten(1), active, strict=True):
            row[index] = torch.from_numpy(self.rng.random(len(index), dtype=np.float32))
        return self.x, active


def _active_entries(size: int, p: float, rng: Any) -> Tensor:
    """The indices of successes in `size` trials of probability p, drawn by the geometric gaps between them."""
    draws = int(size * p + 8 * math.sqrt(size * p) + 16)  # enough but for once in about 10^15 times
    u = torch.from_numpy(rng.random(draws, dtype=np.float32))
    gaps = (u.neg_().log1p_() / math.log1p(-p)).to(torch.int64) + 1  # log(1 - u), as u can be 0 but never 1
    index = gaps.cumsum(0) - 1
    return index[: int(torch.searchsorted(index, size))]


def cosine_decay(step: int, steps: int) -> float:
    """Learning-rate factor: from 1 at the first step down to 0 after the last, half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def train(
    model: ToyModel,
    feature_prob: Float[Tensor, "instances features"],
    importance: Float[Tensor, "instances features"] | None = None,
    *,
    steps: int,
    batch: int = 1024,
    lr: float = 1e-2,
    sample: Sampler | None = None,
    generator: Generator | None = None,
    on_step: Callable[[int], None] | None = None,
) -> ToyModel:
    """Trains every instance on fresh batches, in place, with Adam and a cosine schedule; returns the model.

    `sample(batch, generator)` replaces the independent features of `feature_prob`. `on_step(step)` is
    called after each step, for progress and checkpoints.

    The gradient is worked out by hand (`loss_gradient`), which is about twice as fast as autograd here:
    `benchmarks/superposition.py` measures it. Instances are taken in groups that fit into a core's cache.
    """
    check_probabilities(feature_prob)
    generator = generator or torch.Generator().manual_seed(0)
    importance = torch.ones_like(model.b) if importance is None else importance
    instances, _, features = model.W.shape
    if feature_prob.shape != (instances, features):
        raise ValueError(
            f"feature_prob must be {(instances, features)}, instances x features, not {tuple(feature_prob.shape)}"
        )

    W, b = (torch.nn.Parameter(tensor, requires_grad=False) for tensor in (model.W, model.b))
    W.grad, b.grad = torch.zeros_like(W), torch.zeros_like(b)
    optimizer = torch.optim.AdamW([W, b], lr=lr, weight_decay=0.0, fused=True)
    size = max(1, CACHE_FLOATS // (batch * features))
    groups = [slice(first, first + size) for first in range(0, instances, size)]
    streams = [] if sample else [_FeatureStream(batch, feature_prob[group], generator) for group in groups]

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * cosine_decay(step, steps)
        given = sample(batch, generator).transpose(0, 1) if sample else None
        for number, group in enumerate(groups):
            x, active = streams[number].draw() if given is None else (given[group], None)
            W.grad[group], b.grad[group] = loss_gradient(W[group], b[group], importance[group], x, active)
        optimizer.step()
        if on_step:
            on_step(step)
    return model


def train_neurons(
    model: NeuronModel,
    sample: Sampler,
    target: Callable[[Tensor], Tensor],
    importance: Float[Tensor, "*instances features"],
    *,
    steps: int,
    batch: int = 512,
    lr: float = 1e-2,
    generator: Generator | None = None,
) -> NeuronModel:
    """Trains a NeuronModel, in place, to answer x with target(x), by autograd; returns the model.

    `target` is the identity for the privileged-basis experiment and `torch.abs` for computing in superposition.
    """
    generator = generator or torch.Generator().manual_seed(0)
    parameters = [t.requires_grad_() for t in (model.W_in, model.b, model.W_out) if t is not None]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * cosine_decay(step, steps)
        x = sample(batch, generator)
        optimizer.zero_grad()
        importance_weighted_loss(target(x), model(x), importance).sum().backward()
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return model
