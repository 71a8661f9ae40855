"""Toy models of superposition: how a layer of m dimensions holds n > m features.

Follows Elhage et al. 2022, "Toy Models of Superposition" (transformer-circuits.pub/2022/toy_model).
A model compresses n sparse features x into m hidden dimensions and reads them back,

    h = W x        x_hat = ReLU(W^T h + b)        loss = mean over features of I_i (x_i - x_hat_i)^2

and its geometry is what the loss makes of W. Every tensor has a leading `instances` axis: many
models that differ in sparsity, importance or seed are trained side by side as one ensemble.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

# Data: sparse features ---------------------------------------------------------------------------


def sample_features(
    batch: int, feature_prob: Float[Tensor, "instances features"], generator: Generator | None = None
) -> Float[Tensor, "batch instances features"]:
    """Independent sparse features: zero, or with probability p uniform in (0, 1].

    One uniform draw u decides both: below p the feature is active, and given that it is, u / p is
    itself uniform. (Elhage et al. 2022, "Demonstrating Superposition"; S = 1 - p is their sparsity.)

    >>> sample_features(1024, torch.full((3, 5), 0.1)).shape
    torch.Size([1024, 3, 5])
    """
    _check_prob(feature_prob)
    u = torch.rand(batch, *feature_prob.shape, generator=generator)
    return torch.where(u < feature_prob, u / feature_prob, 0.0)


def sample_correlated_pairs(
    batch: int, feature_prob: Float[Tensor, "instances features"], generator: Generator | None = None
) -> Float[Tensor, "batch instances features"]:
    """Features 2k and 2k+1 are active together or not at all; their magnitudes stay independent.

    The probability of a pair is that of its first feature.
    """
    pair_prob = _pair_probability(feature_prob)
    active = torch.rand(batch, *pair_prob.shape, generator=generator) < pair_prob
    magnitude = torch.rand(batch, *feature_prob.shape, generator=generator)
    return magnitude * active.repeat_interleave(2, dim=-1)


def sample_anticorrelated_pairs(
    batch: int, feature_prob: Float[Tensor, "instances features"], generator: Generator | None = None
) -> Float[Tensor, "batch instances features"]:
    """Features 2k and 2k+1 are never active together; each is active with its pair's probability p <= 1/2."""
    pair_prob = _pair_probability(feature_prob)
    if (pair_prob > 0.5).any():
        raise ValueError("two features that exclude each other cannot each be active more than half of the time")
    u = torch.rand(batch, *pair_prob.shape, generator=generator)
    first, second = u < pair_prob, u > 1 - pair_prob
    magnitude = torch.rand(batch, *feature_prob.shape, generator=generator)
    return magnitude * torch.stack([first, second], dim=-1).flatten(-2)


def sample_signed_features(
    batch: int, feature_prob: Float[Tensor, "instances features"], generator: Generator | None = None
) -> Float[Tensor, "batch instances features"]:
    """Sparse features of either sign: zero, or with probability p uniform in [-1, 1]."""
    x = sample_features(batch, feature_prob, generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.5, x, -x)


def _check_prob(feature_prob: Tensor) -> None:
    if not ((feature_prob >= 0) & (feature_prob <= 1)).all():
        raise ValueError(
            "feature_prob holds probabilities and must lie between 0 and 1, "
            f"but goes from {feature_prob.min():.3g} to {feature_prob.max():.3g}"
        )


def _pair_probability(feature_prob: Float[Tensor, "instances features"]) -> Float[Tensor, "instances pairs"]:
    _check_prob(feature_prob)
    if feature_prob.shape[-1] % 2:
        raise ValueError(f"features come in pairs here, so their number must be even, not {feature_prob.shape[-1]}")
    return feature_prob[:, ::2]


# The model ---------------------------------------------------------------------------------------


@dataclass
class ToyModel:
    """An ensemble of toy models, one per instance. Column i of W is the direction of feature i."""

    W: Float[Tensor, "instances hidden features"]
    b: Float[Tensor, "instances features"]

    @classmethod
    def random(cls, instances: int, n_features: int, n_hidden: int, generator: Generator | None = None) -> "ToyModel":
        """Feature directions of expected squared length 1, in random directions; zero biases."""
        W = torch.randn(instances, n_hidden, n_features, generator=generator) / math.sqrt(n_hidden)
        return cls(W, torch.zeros(instances, n_features))

    def __call__(self, x: Float[Tensor, "batch instances features"]) -> Float[Tensor, "batch instances features"]:
        return reconstruct(self.W, self.b, x)

    def __getitem__(self, which: int | slice | list[int] | Tensor) -> "ToyModel":
        """The ensemble of the chosen instances, e.g. `model[3]` or `model[losses.argsort()[:4]]`."""
        which = slice(which, which + 1 or None) if isinstance(which, int) else which
        return ToyModel(self.W[which], self.b[which])


def reconstruct(
    W: Float[Tensor, "instances hidden features"],
    b: Float[Tensor, "instances features"],
    x: Float[Tensor, "batch instances features"],
) -> Float[Tensor, "batch instances features"]:
    """The toy model's output, ReLU(W^T W x + b). The bias goes inside the ReLU."""
    h = torch.einsum("ihf,bif->bih", W, x)
    return torch.relu(torch.einsum("ihf,bih->bif", W, h) + b)


@dataclass
class NeuronModel:
    """An ensemble with a privileged basis: ReLU(W_out ReLU(W_in x) + b), its hidden units being neurons.

    A linear hidden layer can be rotated without changing what the model computes; this one cannot,
    so here it makes sense to ask what a single neuron stands for. With `W_out` None the weights are tied,
    W_out = W_in^T. (Elhage et al. 2022, "Superposition in a Privileged Basis" and "Computation in Superposition".)
    """

    W_in: Float[Tensor, "instances neurons features"]
    b: Float[Tensor, "instances features"]
    W_out: Float[Tensor, "instances features neurons"] | None = None

    @classmethod
    def random(
        cls, instances: int, n_features: int, n_neurons: int, *, tied: bool, generator: Generator | None = None
    ) -> "NeuronModel":
        """Random weights of variance 1 / neurons; zero biases."""
        W_in, W_out = torch.randn(2, instances, n_neurons, n_features, generator=generator) / math.sqrt(n_neurons)
        return cls(W_in, torch.zeros(instances, n_features), None if tied else W_out.mT.contiguous())

    def __call__(self, x: Float[Tensor, "batch instances features"]) -> Float[Tensor, "batch instances features"]:
        W_out = self.W_in.mT if self.W_out is None else self.W_out
        neurons = torch.relu(x.transpose(0, 1) @ self.W_in.mT)  # instances first: several times faster than einsum here
        return torch.relu((neurons @ W_out.mT).transpose(0, 1) + self.b)


def importance_weighted_loss(
    x: Float[Tensor, "batch instances features"],
    x_hat: Float[Tensor, "batch instances features"],
    importance: Float[Tensor, "*instances features"],
) -> Float[Tensor, " instances"]:
    """Per instance, the mean over batch and features of I_i (x_i - x_hat_i)^2."""
    return (importance * (x - x_hat) ** 2).mean(dim=(0, 2))


# Geometry: what the weights say ------------------------------------------------------------------


def interference_matrix(
    W: Float[Tensor, "instances hidden features"],
) -> Float[Tensor, "instances features features"]:
    """W^T W. Entry (i, j) is how much feature j, when active, adds to the read-out of feature i."""
    return torch.einsum("ihf,ihg->ifg", W, W)


def interference(W: Float[Tensor, "instances hidden features"]) -> Float[Tensor, "instances features"]:
    """Sum over j != i of (w_i_hat . w_j)^2: how much of the others lies along feature i's direction.

    0 means that feature i has its direction to itself, or none at all. (Elhage et al. 2022, where
    it colours the bars of "Basic Results".)
    """
    G = interference_matrix(W)
    norm2 = G.diagonal(dim1=-2, dim2=-1)
    return torch.where(norm2 > 0, ((G**2).sum(-1) - norm2**2) / norm2, 0.0)


def dimensions_per_feature(W: Float[Tensor, "instances hidden features"]) -> Float[Tensor, "instances features"]:
    """D_i = |w_i|^2 / sum over j of (w_i_hat . w_j)^2, the fraction of a dimension that feature i has.

    1 for a feature with a dimension to itself, 1/2 in an antipodal pair, 2/5 in a pentagon; 0, not
    NaN, for a feature that is not represented. Summed over features it is at most the rank of W.
    (Elhage et al. 2022, "The Geometry of Superposition".)
    """
    G = interference_matrix(W)
    norm2 = G.diagonal(dim1=-2, dim2=-1)
    return torch.where(norm2 > 0, norm2**2 / (G**2).sum(-1), 0.0)


def dimensions_per_learned_feature(W: Float[Tensor, "instances hidden features"]) -> Float[Tensor, " instances"]:
    """D* = m / |W|_F^2: hidden dimensions over the number of features learned, if each has length 1.

    Infinite for a model that has learned nothing. (Elhage et al. 2022, "The Geometry of Superposition".)
    """
    return W.shape[-2] / (W**2).sum(dim=(-2, -1))


def polysemanticity(W: Float[Tensor, "instances neurons features"]) -> Float[Tensor, "instances neurons"]:
    """Effective number of features a neuron responds to: (sum_i w_i^2)^2 / sum_i w_i^4 over its row of W.

    1 for a neuron of one feature, k for a neuron of k equally strong ones, 0 for a dead neuron. (The
    participation ratio. It speaks of the basis of neurons; the other measures here do not.)
    """
    w2 = W**2
    return torch.where(w2.sum(-1) > 0, w2.sum(-1) ** 2 / (w2**2).sum(-1), 0.0)


# Closed forms ------------------------------------------------------------------------------------


def two_feature_losses(
    feature_prob: Float[Tensor, "*grid"], importance: Float[Tensor, "*grid"]
) -> Float[Tensor, "3 *grid"]:
    """Expected losses, two features in one dimension, of keeping the first, keeping the second, or both as (1, -1).

    The importances are 1 and `importance`. A dropped feature is answered by its mean, p/2, which
    leaves its variance p/3 - p^2/4. The antipodal pair is exact unless both features are active
    (probability p^2); then each is off by the smaller of the two, whose mean square is 1/6.
    """
    p, I = feature_prob, importance
    variance = p / 3 - p**2 / 4
    return torch.stack([I * variance, variance, (1 + I) * p**2 / 6]) / 2


def nearly_orthogonal_bound(dimensions: int, epsilon: float) -> float:
    """A number of unit vectors for which all |cosines| can be below epsilon: exp(d epsilon^2 / 4).

    Two random unit vectors have |cosine| above epsilon with probability at most 2 exp(-d epsilon^2 / 2)
    (Ball 1997, Lemma 2.2), and N of them form fewer than N^2 / 2 pairs. For N below this number a random
    choice succeeds with positive probability. It is a lower bound, and a weak one in few dimensions.
    """
    return math.exp(dimensions * epsilon**2 / 4)


def pack_directions(dimensions: int, epsilon: float, tries: int, generator: Generator | None = None) -> int:
    """How many random directions with all |cosines| below epsilon are found by keeping each that fits.

    Tries that many random unit vectors, one after the other. More tries find more: a lower bound too.
    """
    kept = torch.empty(0, dimensions)
    candidates = torch.nn.functional.normalize(torch.randn(tries, dimensions, generator=generator), dim=-1)
    for block in candidates.split(256):
        block = block[((block @ kept.T).abs() < epsilon).all(dim=-1)]
        for v in block:
            if not len(kept) or bool(((kept @ v).abs() < epsilon).all()):
                kept = torch.cat([kept, v[None]])
    return len(kept)


# Training ----------------------------------------------------------------------------------------

Sampler = Callable[[int, Generator], Tensor]
CACHE_FLOATS = 2**18  # instances are trained in groups whose batch of features fits into a core's 1 MiB or so of cache
SPARSE_BELOW = 0.15  # below this probability it is cheaper to draw only the active entries


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
    """Endless batches of the features of `sample_features`, instances first, drawn into one buffer."""

    def __init__(self, batch: int, feature_prob: Float[Tensor, "instances features"], generator: Generator):
        self.x = torch.zeros(len(feature_prob), batch, feature_prob.shape[1])
        self.generator = generator
        self.prob = feature_prob.clamp_min(1e-12)
        self.probs = self.prob[:, 0].tolist()
        self.alike = bool((feature_prob == feature_prob[:, :1]).all())
        self.sparse = self.alike and max(self.probs) <= SPARSE_BELOW and self.x[0].numel() >= 2**15

    def draw(self) -> tuple[Tensor, list[Tensor] | None]:
        if (
            not self.sparse
        ):  # the positive part of a uniform number between 1 - 1/p and 1 is 0, or with probability p uniform
            if self.alike:
                for row, p in zip(self.x, self.probs, strict=True):
                    row.uniform_(1 - 1 / p, 1, generator=self.generator)
            else:
                self.x.uniform_(generator=self.generator).div_(-self.prob[:, None]).add_(1)
            return self.x.relu_(), None
        self.x.zero_()
        active = [_active_entries(row.numel(), p, self.generator) for row, p in zip(self.x, self.probs, strict=True)]
        for row, index in zip(self.x.flatten(1), active, strict=True):
            row[index] = torch.rand(len(index), generator=self.generator)
        return self.x, active


def _active_entries(size: int, p: float, generator: Generator) -> Tensor:
    """The indices of successes in `size` trials of probability p, drawn by the geometric gaps between them."""
    draws = int(size * p + 8 * math.sqrt(size * p) + 16)  # enough but for once in about 10^15 times
    u = torch.rand(draws, generator=generator)
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
    _check_prob(feature_prob)
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
    streams = [_FeatureStream(batch, feature_prob[group], generator) for group in groups]

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * cosine_decay(step, steps)
        given = sample(batch, generator).transpose(0, 1) if sample else None
        for group, stream in zip(groups, streams, strict=True):
            x, active = stream.draw() if given is None else (given[group], None)
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
