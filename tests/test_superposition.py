"""Chapter 2's module: against hand-worked geometry, autograd, Monte Carlo and the shipped sweep."""

import math

import pytest
import torch

from interp_edu import recipes, weights
from interp_edu import superposition as sp


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def polygon(corners, length=1.0):
    angles = 2 * math.pi * torch.arange(corners) / corners
    return length * torch.stack([angles.cos(), angles.sin()])[None]


# Data


def assert_sparse_uniform(x, p):
    """x [samples, entries] is zero or, with probability p [entries], uniform, independently."""
    N = len(x)
    active = (x > 0).float()
    assert ((active.mean(0) - p).abs() < 6 * (p * (1 - p) / N).sqrt()).all()
    values = x[x > 0]
    quantiles = torch.quantile(values[:1_000_000], torch.linspace(0.1, 0.9, 9))
    assert torch.allclose(quantiles, torch.linspace(0.1, 0.9, 9), atol=6 * 0.5 / math.sqrt(len(values)))
    assert torch.corrcoef(active.T).fill_diagonal_(0).abs().max() < 6 / math.sqrt(N)
    assert torch.corrcoef(x.T).fill_diagonal_(0).abs().max() < 6 / math.sqrt(N)


def test_sample_features():
    p = torch.tensor([[0.1, 0.5, 0.9], [0.3, 0.2, 0.7]])
    x = sp.sample_features(40_000, p, generator())
    assert_sparse_uniform(x.flatten(1), p.flatten())
    assert (sp.sample_features(100, torch.zeros(1, 2)) == 0).all()
    assert (sp.sample_features(100, torch.ones(1, 2), generator()) > 0).all()


def test_pairs():
    p = torch.full((2, 6), 0.2)
    together = sp.sample_correlated_pairs(40_000, p, generator())
    apart = sp.sample_anticorrelated_pairs(40_000, p, generator())
    for x in (together, apart):
        assert torch.allclose((x > 0).float().mean(0), p, atol=0.015)
    assert torch.equal(together[..., ::2] > 0, together[..., 1::2] > 0)
    assert not ((apart[..., ::2] > 0) & (apart[..., 1::2] > 0)).any()
    both = together[together[:, 0, 0] > 0][:, 0, :2]
    assert torch.corrcoef(both.T)[0, 1].abs() < 0.08
    signed = sp.sample_signed_features(40_000, p, generator())
    assert signed.mean().abs() < 0.005
    assert torch.allclose((signed != 0).float().mean(0), p, atol=0.015)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sp.sample_features(4, torch.tensor([[1.2]])), "between 0 and 1"),
        (lambda: sp.sample_correlated_pairs(4, torch.full((1, 3), 0.1)), "even"),
        (lambda: sp.sample_anticorrelated_pairs(4, torch.full((1, 2), 0.6)), "half of the time"),
    ],
)
def test_wrong_input_is_refused_with_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Model and geometry


def test_reconstruct_by_hand():
    W, b, x = torch.randn(3, 2, 5), torch.randn(3, 5), torch.rand(4, 3, 5)
    want = torch.stack(
        [torch.stack([(W[i].T @ W[i] @ x[k, i] + b[i]).clamp(min=0) for i in range(3)]) for k in range(4)]
    )
    assert torch.allclose(sp.reconstruct(W, b, x), want, atol=1e-6)
    assert torch.allclose(sp.ToyModel(W, b)[1](x[:, 1:2]), want[:, 1:2], atol=1e-6)
    assert torch.allclose(sp.ToyModel(W, b)[-1](x[:, 2:]), want[:, 2:], atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_neuron_model_by_hand(tied):
    model = sp.NeuronModel.random(2, 6, 3, tied=tied, generator=generator())
    x, k = torch.randn(4, 2, 6), 1
    W_out = model.W_in[k].T if tied else model.W_out[k]
    want = torch.relu(torch.relu(x[:, k] @ model.W_in[k].T) @ W_out.T + model.b[k])
    assert torch.allclose(model(x)[:, k], want, atol=1e-6)


@pytest.mark.parametrize(
    ("W", "D", "leak"),
    [(torch.eye(2)[None], 1, 0), (polygon(2), 1 / 2, 1), (polygon(3), 2 / 3, 0.5), (polygon(5), 2 / 5, 1.5)],
)
def test_geometry_of_known_shapes(W, D, leak):
    for scale in (1.0, 0.3):
        n = W.shape[-1]
        assert torch.allclose(sp.dimensions_per_feature(scale * W), torch.full((1, n), float(D)), atol=1e-5)
        assert torch.allclose(sp.interference(scale * W), torch.full((1, n), leak * scale**2), atol=1e-5)
    assert torch.allclose(sp.dimensions_per_learned_feature(W), torch.tensor([2 / W.shape[-1]]))


def test_geometry_does_not_depend_on_the_basis_and_polysemanticity_does():
    W = torch.randn(1, 4, 9, generator=generator())
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator(1)))[0]
    for measure in (
        sp.interference,
        sp.dimensions_per_feature,
        sp.dimensions_per_learned_feature,
        sp.interference_matrix,
    ):
        assert torch.allclose(measure(W), measure(turn @ W), atol=1e-4)
    assert torch.allclose(sp.polysemanticity(torch.eye(4)[None]), torch.ones(1, 4))
    assert (sp.polysemanticity((turn @ torch.eye(4))[None]) > 1.2).all()
    assert torch.allclose(
        sp.polysemanticity(torch.tensor([[[1.0, -1, 1, 0], [0, 0, 0, 0]]])), torch.tensor([[3.0, 0.0]])
    )


def test_a_feature_that_is_not_represented_is_zero_never_nan():
    W = torch.randn(2, 3, 8, generator=generator())
    W[0, :, 4] = 0
    for measure in (sp.dimensions_per_feature, sp.interference):
        assert measure(W)[0, 4] == 0
        assert measure(W).isfinite().all()
    assert (sp.dimensions_per_feature(W).sum(-1) <= 3 + 1e-4).all()
    assert sp.dimensions_per_learned_feature(torch.zeros(1, 2, 3)).isinf().all()


# Closed forms


@pytest.mark.parametrize(("p", "importance"), [(0.1, 1.0), (0.5, 0.3), (0.9, 4.0)])
def test_two_feature_losses_against_monte_carlo(p, importance):
    x = sp.sample_features(400_000, torch.full((3, 2), p), generator())
    W = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, -1.0]]])
    b = torch.tensor([[0.0, p / 2], [p / 2, 0.0], [0.0, 0.0]])
    measured = sp.importance_weighted_loss(x, sp.reconstruct(W, b, x), torch.tensor([1.0, importance]))
    predicted = sp.two_feature_losses(torch.tensor(p), torch.tensor(importance))
    assert torch.allclose(measured, predicted, rtol=0.03)


def test_packing():
    assert sp.nearly_orthogonal_bound(768, 0.3) == pytest.approx(math.exp(768 * 0.09 / 4))
    assert sp.pack_directions(4, 1.01, 50, generator()) == 50
    assert sp.pack_directions(2, 0.01, 200, generator()) <= 2
    few, many = (sp.pack_directions(16, 0.3, tries, generator()) for tries in (100, 2000))
    assert few < many


# What is shipped


def test_the_shipped_sweep_is_as_good_as_its_manifest_says():
    stated = weights.manifest()["superposition_sweep"]["quality"]
    measured = recipes.RECIPES["superposition_sweep"].measure(weights.load("superposition_sweep"))
    assert measured == pytest.approx(stated, abs=1e-4)
    assert 0.97 < stated["d_star_dense_lowest"] <= stated["d_star_dense_highest"] < 1.03
    assert stated["sparsities_on_plateau"] >= 3
    assert stated["plateau_is_one_stretch"]
