"""Training the toy models: the gradient and the steps against autograd, the streams' joint distribution."""

import numpy as np
import pytest
import torch

from interp_edu import superposition as sp
from interp_edu import toy_training as tt
from tests.test_superposition import assert_sparse_uniform, generator


def test_probabilities_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="feature_prob must be"):
        tt.train(sp.ToyModel.random(2, 5, 2), torch.full((3, 5), 0.1), steps=1)


@pytest.mark.parametrize("p", [0.03, 0.05, 0.4, 1.0])
def test_the_training_stream_has_the_same_distribution(p):
    prob = torch.full((2, 64), p)
    stream = tt._FeatureStream(1024, prob, generator())
    assert stream.sparse == (p <= tt.SPARSE_BELOW)
    x = torch.cat([stream.draw()[0].clone().transpose(0, 1) for _ in range(20)])
    if p < 1:
        assert_sparse_uniform(x[:, :, :3].flatten(1), prob[:, :3].flatten())
    else:
        assert (x > 0).all()


def test_the_training_stream_with_unequal_probabilities():
    prob = torch.tensor([[0.05, 0.5, 0.8]])
    stream = tt._FeatureStream(40_000, prob, generator())
    assert_sparse_uniform(stream.draw()[0][0], prob[0])


def test_active_entries_name_all_that_is_not_zero():
    stream = tt._FeatureStream(1024, torch.full((2, 64), 0.05), generator())
    x, active = stream.draw()
    for row, index in zip(x.flatten(1), active, strict=True):
        assert torch.equal(row.nonzero().flatten(), index[row[index] > 0])
        assert (index.diff() > 0).all()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_active_entries_at_the_edges_of_the_generator(u):
    """A draw of exactly 0 once gave an infinite gap."""

    class Constant:
        def random(self, n, dtype):
            return np.full(n, u, dtype=dtype)

    index = tt._active_entries(1000, 0.01, Constant())
    assert ((index >= 0) & (index < 1000)).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_loss_gradient_against_autograd(sparse):
    W, b = torch.randn(2, 3, 64, generator=generator()), 0.3 * torch.randn(2, 64, generator=generator(1))
    importance = torch.rand(2, 64, generator=generator(2)) + 0.1
    x, active = tt._FeatureStream(1024, torch.full((2, 64), 0.05 if sparse else 0.7), generator()).draw()
    assert (active is not None) == sparse
    grad_W, grad_b = tt.loss_gradient(W, b, importance, x, active)
    W, b = W.requires_grad_(), b.requires_grad_()
    loss = sp.importance_weighted_loss(x.transpose(0, 1), sp.reconstruct(W, b, x.transpose(0, 1)), importance)
    want_W, want_b = torch.autograd.grad(loss.sum(), [W, b])
    assert torch.allclose(grad_W, want_W, atol=1e-5 * float(want_W.abs().max()))
    assert torch.allclose(grad_b, want_b, atol=1e-5 * float(want_b.abs().max()))


def test_training_takes_the_steps_that_autograd_takes():
    prob = torch.full((3, 6), 0.3)
    batches = [sp.sample_features(64, prob, generator(seed)) for seed in range(20)]
    start = sp.ToyModel.random(3, 6, 2, generator())
    model = sp.ToyModel(start.W.clone(), start.b.clone())
    feed = iter(batches)
    tt.train(model, prob, steps=20, batch=64, lr=1e-2, sample=lambda *_: next(feed))

    W, b = start.W.requires_grad_(), start.b.requires_grad_()
    optimizer = torch.optim.AdamW([W, b], lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: tt.cosine_decay(step, 20))
    for x in batches:
        optimizer.zero_grad()
        sp.importance_weighted_loss(x, sp.reconstruct(W, b, x), torch.ones(6)).sum().backward()
        optimizer.step()
        schedule.step()
    assert torch.allclose(model.W, W, atol=1e-5)
    assert torch.allclose(model.b, b, atol=1e-5)


def test_groups_do_not_change_the_result(monkeypatch):
    prob, outcomes = torch.full((5, 8), 0.3), []
    for floats in (64 * 8, 2**20):
        monkeypatch.setattr(tt, "CACHE_FLOATS", floats)
        model = sp.ToyModel.random(5, 8, 3, generator())
        tt.train(
            model, prob, steps=10, batch=64, sample=lambda b, g: sp.sample_features(b, prob, g), generator=generator(1)
        )
        outcomes.append(model.W)
    assert torch.allclose(*outcomes, atol=1e-6)


def test_sparse_features_in_one_dimension_become_antipodal_and_dense_ones_do_not():
    prob = torch.tensor([[0.05, 0.05]] * 8 + [[1.0, 1.0]] * 8)
    importance = torch.tensor([1.0, 0.7]).expand(16, 2)
    model = tt.train(sp.ToyModel.random(16, 2, 1, generator()), prob, importance, steps=800, batch=256, lr=2e-2)
    x = sp.sample_features(20_000, prob, generator())
    losses = sp.importance_weighted_loss(x, model(x), importance)
    sparse, dense = model.W[:8][losses[:8].argmin()], model.W[8:][losses[8:].argmin()]
    assert float(sparse[0, 0] * sparse[0, 1]) == pytest.approx(-1, abs=0.1)
    assert dense.abs()[0, 1] < 0.15 < 0.85 < dense.abs()[0, 0]


def test_train_neurons_learns_the_absolute_value():
    prob = torch.full((2, 2), 0.5)
    model = sp.NeuronModel.random(2, 2, 8, tied=False, generator=generator())
    tt.train_neurons(model, lambda n, g: sp.sample_signed_features(n, prob, g), torch.abs, torch.ones(2), steps=600)
    x = sp.sample_signed_features(2000, prob, generator())
    loss = sp.importance_weighted_loss(x.abs(), model(x), torch.ones(2))
    assert loss.min() < 0.05 * x.abs().var()
    assert not model.W_in.requires_grad
