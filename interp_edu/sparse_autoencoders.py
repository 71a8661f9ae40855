"""Sparse autoencoders (SAEs): getting features back out of a space that has fewer dimensions than features.

An SAE writes an activation x as a sum of few directions out of many (Bricken et al. 2023; Cunningham et al. 2023):

    f = ReLU(W_e x + b_e)      x_hat = W_d f + b_d      loss = |x - x_hat|^2 + lambda |f|_1

with m > d latents f and columns of W_d of length 1. In code, samples are rows and names are those of the field's
libraries: `W_enc` [d_in, d_sae] is W_e transposed, `W_dec` [d_sae, d_in] is W_d transposed, a row for each latent.
Two variants choose otherwise which latents are on: TopK and JumpReLU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from interp_edu.superposition import sample_features

# The autoencoder -----------------------------------------------------------------------------------


@dataclass
class SAE:
    """A sparse autoencoder. Its kind follows from what is given:

    neither `k` nor `threshold`: ReLU, as above;
    `k`: TopK, the k largest of ReLU((x - b_dec) W_enc + b_enc) (Gao et al. 2024, who centre x first);
    `threshold`: JumpReLU, pre-activations above their latent's threshold (Rajamanoharan et al. 2024b).

    Raises ValueError for shapes that do not fit together, or for a k that is not between 1 and d_sae.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, "d_in"]
    k: int | None = None
    threshold: Float[Tensor, "d_sae"] | None = None

    def __post_init__(self) -> None:
        (d_in, d_sae), W_dec = self.W_enc.shape, tuple(self.W_dec.shape)
        biases = (tuple(self.b_enc.shape), tuple(self.b_dec.shape))
        if W_dec != (d_sae, d_in) or biases != ((d_sae,), (d_in,)):
            raise ValueError(
                f"W_enc {d_in, d_sae} goes with W_dec {d_sae, d_in}, b_enc {(d_sae,)} and b_dec {(d_in,)}: "
                f"got {W_dec}, {biases[0]} and {biases[1]}"
            )
        if self.k is not None and self.threshold is not None:
            raise ValueError("an SAE has a k (TopK) or a threshold (JumpReLU), not both")
        if self.k is not None and not 1 <= self.k <= d_sae:
            raise ValueError(f"k must be from 1 to {d_sae}, the number of latents: got {self.k}")

    @classmethod
    def random(
        cls,
        d_in: int,
        d_sae: int,
        generator: Generator | None = None,
        *,
        k: int | None = None,
        jump: float | None = None,
    ) -> "SAE":
        """Random unit directions, the encoder reading along them (W_enc = W_dec^T); no biases.

        With `jump` a JumpReLU whose thresholds start there.

        >>> SAE.random(8, 32)(torch.randn(5, 8)).shape
        torch.Size([5, 8])
        """
        W_dec = F.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
        threshold = None if jump is None else torch.full((d_sae,), jump)
        return cls(W_dec.T.clone(), torch.zeros(d_sae), W_dec, torch.zeros(d_in), k, threshold)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return (x if self.k is None else x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The latents: never negative, most of them zero."""
        pre = self.pre_activations(x)
        if self.threshold is not None:
            return jump_relu(pre, self.threshold)
        return torch.relu(pre) if self.k is None else top_k(pre, self.k)

    def decode(self, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        return f @ self.W_dec + self.b_dec

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return self.decode(self.encode(x))

    def rescaled(self, scale: float) -> "SAE":
        """The SAE for x, if this one was trained on scale * x. Directions stay as they are; biases are divided."""
        threshold = None if self.threshold is None else self.threshold / scale
        return SAE(self.W_enc, self.b_enc / scale, self.W_dec, self.b_dec / scale, self.k, threshold)

    def state(self) -> dict[str, Tensor]:
        """The parameters by name, as SAELens calls them; a TopK's k is among them. `from_state` reads it."""
        found = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        found |= {} if self.k is None else {"k": torch.tensor(self.k)}
        return found | ({} if self.threshold is None else {"threshold": self.threshold})

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "SAE":
        """What `state` gave. Raises ValueError if a parameter is missing, or if there is one that no SAE has."""
        needed, known = {"W_enc", "b_enc", "W_dec", "b_dec"}, {"k", "threshold"}
        if not needed <= set(state) or not set(state) <= needed | known:
            raise ValueError(f"an SAE has {sorted(needed)}, perhaps one of {sorted(known)}: got {sorted(state)}")
        given: dict[str, Any] = dict(state)
        return cls(**given | ({"k": int(state["k"])} if "k" in state else {}))


def top_k(pre: Float[Tensor, "*batch d_sae"], k: int) -> Float[Tensor, "*batch d_sae"]:
    """The k largest entries of each row, if they are positive; all others are 0. (Gao et al. 2024, section 2.3.)"""
    values, index = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


def jump_relu(pre: Float[Tensor, "*batch d_sae"], threshold: Float[Tensor, "d_sae"]) -> Float[Tensor, "*batch d_sae"]:
    """Entries above their threshold as they are, not shrunk; all others 0. (Rajamanoharan et al. 2024b, equation 3.)"""
    return torch.where(pre > threshold, pre, 0.0)


def sae_loss(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"], sparsity: float
) -> Float[Tensor, ""]:
    """The mean over the batch of |x - x_hat|^2 + sparsity |f|_1. The square is summed over dimensions, not averaged."""
    return ((x - x_hat) ** 2).sum(dim=1).mean() + sparsity * f.abs().sum(dim=1).mean()


# What it is judged by ------------------------------------------------------------------------------


def l0(f: Float[Tensor, "batch d_sae"]) -> float:
    """How many latents are on, on average over samples."""
    return (f != 0).sum(dim=1).double().mean().item()


def variance_unexplained(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> float:
    """The fraction of variance unexplained: squared error over that of answering with the mean. 0 is perfect."""
    total = (x - x.mean(dim=0)).square().sum()
    if total == 0:
        raise ValueError("all samples are alike: there is no variance to explain")
    return ((x - x_hat).square().sum() / total).item()


def loss_recovered(clean: float, spliced: float, ablated: float) -> float:
    """The share of a model's loss that comes back when the SAE's output, instead of an ablation, takes x's place.

    1 if the loss is as clean as without the SAE, 0 if it is no better than the ablation. Say which one: for zero and
    mean ablation the same SAE scores very differently. Raises ValueError if the ablation does not hurt.
    """
    if not ablated > clean:
        raise ValueError(f"ablation leaves the loss at {ablated:.4g}, from {clean:.4g}: there is nothing to recover")
    return (ablated - spliced) / (ablated - clean)


def firing_rates(f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "d_sae"]:
    """For each latent the share of samples on which it is on. 0: dead, as far as these samples show."""
    return (f != 0).float().mean(dim=0)


def reconstruction_bias(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> float:
    """Below 1: x_hat is too short, it has shrunk. The g for which x_hat / g fits x best, E|x_hat|^2 / E[x . x_hat].

    (The relative reconstruction bias of Rajamanoharan et al. 2024a, section 3.1.)
    """
    return (x_hat.square().sum() / (x * x_hat).sum()).item()


def max_cosines(
    features: Float[Tensor, "features d_in"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "features"]:
    """For each true feature, the cosine of the most similar latent's direction, 0 for a direction of length zero.

    Its mean is the mean max cosine similarity (MMCS) of Sharkey et al. 2022.
    """
    return (F.normalize(features, dim=1) @ F.normalize(W_dec, dim=1).T).max(dim=1).values


# Activations whose features are known --------------------------------------------------------------


def random_directions(n: int, d: int, generator: Generator | None = None) -> Float[Tensor, "n d"]:
    """n random unit vectors in d dimensions."""
    return F.normalize(torch.randn(n, d, generator=generator), dim=1)


@dataclass(frozen=True)
class World:
    """A space that holds more features than it has dimensions, and samples of it whose features are known."""

    directions: Float[Tensor, "n d"]
    feature_prob: float
    seed: int = 0

    @classmethod
    def random(cls, n: int, d: int, feature_prob: float, seed: int = 0) -> "World":
        """n random unit directions in d dimensions; each feature is on with the same probability."""
        return cls(random_directions(n, d, torch.Generator().manual_seed(seed)), feature_prob, seed)

    def features(self, step: int, batch: int = 1024) -> Float[Tensor, "batch n"]:
        """Independent features, zero or uniform in [0, 1) (chapter 2); the same ones for the same step."""
        generator = torch.Generator().manual_seed(100_000 * self.seed + step)
        return sample_features(batch, torch.full((1, len(self.directions)), self.feature_prob), generator)[:, 0]

    def activations(self, step: int, batch: int = 1024) -> Float[Tensor, "batch d"]:
        """What an autoencoder gets to see: each sample is the sum of its features' directions."""
        return self.features(step, batch) @ self.directions


def co_occurring(
    batch: int, feature_prob: Float[Tensor, "features"], together: float, generator: Generator | None = None
) -> Float[Tensor, "batch features"]:
    """Given that feature 2k is on, feature 2k+1 is, too, with probability `together`, and the other way round.

    Magnitudes are uniform in [0, 1) and independent. Each feature keeps its frequency, so nothing changes but the
    company; `together` 0 makes two exclude each other. Raises ValueError unless the features of a pair are equally
    frequent, at most half of the time.
    """
    first, second = feature_prob[::2], feature_prob[1::2]
    if first.shape != second.shape or (first != second).any() or (first > 0.5).any():
        raise ValueError("features come in pairs of equal probability, at most one half")
    u = torch.rand(batch, len(first), generator=generator)
    both, alone = together * first, (1 - together) * first  # u < both; then the first alone, then the second
    on = torch.stack([u < both + alone, (u < both) | ((u >= both + alone) & (u < both + 2 * alone))], dim=2)
    return on.flatten(1) * torch.rand(batch, len(feature_prob), generator=generator)
