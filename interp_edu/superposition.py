"""Toy models of superposition: how a layer of m dimensions holds n > m features.

Follows Elhage et al. 2022, "Toy Models of Superposition" (transformer-circuits.pub/2022/toy_model).
A model compresses n sparse features x into m hidden dimensions and reads them back,

    h = W x        x_hat = ReLU(W^T h + b)        loss = mean over features of I_i (x_i - x_hat_i)^2

and its geometry is what the loss makes of W. Every tensor has a leading `instances` axis: many
models that differ in sparsity, importance or seed are trained side by side as one ensemble.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

# Data: sparse features ---------------------------------------------------------------------------


def sample_features(
    batch: int, feature_prob: Float[Tensor, "instances features"], generator: Generator | None = None
) -> Float[Tensor, "batch instances features"]:
    """Independent sparse features: zero, or with probability p uniform between 0 and 1.

    One uniform draw u decides both: below p the feature is active, and given that it is, u / p is
    itself uniform in [0, 1). (Elhage et al. 2022, "Demonstrating Superposition"; S = 1 - p is their sparsity.)

    >>> sample_features(1024, torch.full((3, 5), 0.1)).shape
    torch.Size([1024, 3, 5])
    """
    check_probabilities(feature_prob)
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


def check_probabilities(feature_prob: Tensor) -> None:
    """Raises ValueError unless all entries lie between 0 and 1."""
    if not ((feature_prob >= 0) & (feature_prob <= 1)).all():
        raise ValueError(
            "feature_prob holds probabilities and must lie between 0 and 1, "
            f"but goes from {feature_prob.min():.3g} to {feature_prob.max():.3g}"
        )


def _pair_probability(feature_prob: Float[Tensor, "instances features"]) -> Float[Tensor, "instances pairs"]:
    check_probabilities(feature_prob)
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
    """Effective number of features in a neuron's row of W: (sum_i w_i^2)^2 / sum_i w_i^4.

    1 for a neuron of one feature, k for a neuron of k equally strong ones, 0 for a dead neuron. Negative
    weights count too; clamp them away to count only the features that excite it. The measure is the
    participation ratio of physics, and speaks of the basis of neurons; the other measures here do not.
    """
    w2 = W**2
    return torch.where(w2.sum(-1) > 0, w2.sum(-1) ** 2 / (w2**2).sum(-1), 0.0)


def orthogonal_components(
    W: Float[Tensor, "hidden features"], shortest: float = 0.5, threshold: float = 0.25
) -> list[Tensor]:
    """Groups of represented features of one model such that features of different groups hardly overlap.

    Two features longer than `shortest` are in one group if a chain of |cosines| above `threshold` links them.
    Returns the indices of each group, largest first. A group of 2 in 1 dimension is an antipodal pair, of 5
    in 2 a pentagon, of 8 in 3 may be a square antiprism. (Elhage et al. 2022 call the whole a tegum product.)
    """
    represented = (W.norm(dim=0) > shortest).nonzero().flatten()
    unit = torch.nn.functional.normalize(W[:, represented], dim=0)
    linked = (unit.T @ unit).abs() > threshold
    for _ in range(len(linked).bit_length()):  # chains of length 1, 2, 4, ...
        linked = (linked.float() @ linked.float()) > 0
    groups = {tuple(row.nonzero().flatten().tolist()) for row in linked}
    return [represented[list(group)] for group in sorted(groups, key=lambda group: (-len(group), group))]


# Closed forms ------------------------------------------------------------------------------------


def two_feature_losses(
    feature_prob: Float[Tensor, "*grid"], importance: Float[Tensor, "*grid"]
) -> Float[Tensor, "3 *grid"]:
    """Expected losses, two features in one dimension, of keeping the first, keeping the second, or both as (1, -1).

    The importances are 1 and `importance`. A dropped feature is answered by its mean, p/2, which
    leaves its variance p/3 - p^2/4. The antipodal pair is exact unless both features are active
    (probability p^2); then each is off by the smaller of the two, whose mean square is 1/6. These are three fixed
    solutions: unit lengths, and no bias for the pair. Others can cost less, so the losses are upper bounds.
    (Elhage et al. 2022, "Superposition as a Phase Change", compare the same three; the working is ours.)
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
