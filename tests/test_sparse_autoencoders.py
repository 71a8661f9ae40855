"""The autoencoder and what it is judged by: worked by hand, against torch, and on data whose truth is known."""

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from interp_edu.sparse_autoencoders import (
    SAE,
    World,
    co_occurring,
    firing_rates,
    jump_relu,
    l0,
    loss_recovered,
    max_cosines,
    random_directions,
    reconstruction_bias,
    sae_loss,
    top_k,
    variance_unexplained,
)

KINDS = [{}, {"k": 3}, {"jump": 0.2}]


def random_sae(d_in=5, d_sae=11, seed=0, **kind):
    """With biases and a decoder of its own, so that nothing is tied or zero by accident."""
    generator = torch.Generator().manual_seed(seed)
    sae = SAE.random(d_in, d_sae, generator, **kind)
    sae.W_enc = torch.randn(d_in, d_sae, generator=generator)
    sae.b_enc = torch.randn(d_sae, generator=generator)
    sae.b_dec = torch.randn(d_in, generator=generator)
    return sae


@pytest.fixture
def x():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(1))


# The autoencoder -----------------------------------------------------------------------------------


def test_the_source_documents_formula_with_columns(x):
    sae = random_sae()
    W_e, W_d = sae.W_enc.T.double(), sae.W_dec.T.double()  # [m, d] and [d, m]
    for row in x:
        f = (W_e @ row.double() + sae.b_enc).clamp(min=0)
        x_hat = W_d @ f + sae.b_dec
        assert torch.allclose(sae.encode(row).double(), f, atol=1e-5)
        assert torch.allclose(sae(row).double(), x_hat, atol=1e-5)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(11))


def test_by_hand():
    sae = SAE(torch.tensor([[1.0, -2.0]]), torch.tensor([0.5, 1.0]), torch.tensor([[1.0], [-1.0]]), torch.tensor([3.0]))
    assert sae.encode(torch.tensor([[2.0], [-1.0]])).tolist() == [[2.5, 0.0], [0.0, 3.0]]
    assert sae(torch.tensor([[2.0], [-1.0]])).tolist() == [[5.5], [0.0]]


def test_top_k_centres_first_and_keeps_the_k_largest(x):
    sae = random_sae(k=3)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    f = sae.encode(x)
    for row, kept in zip(pre.tolist(), f.tolist(), strict=True):
        third = sorted(row)[-3]
        assert kept == pytest.approx([v if v >= third and v > 0 else 0.0 for v in row])


def test_top_k_by_hand():
    pre = torch.tensor([[3.0, -1.0, 2.0, 0.5], [-3.0, -1.0, -2.0, 0.5]])
    assert top_k(pre, 2).tolist() == [
        [3, 0, 2, 0],
        [0, 0, 0, 0.5],
    ]  # negative ones stay off, also if fewer than k are left
    assert top_k(pre[0], 1).tolist() == [3, 0, 0, 0]


def test_jump_relu_does_not_shrink():
    pre = torch.tensor([[0.1, 0.3, -1.0, 2.0]])
    assert torch.equal(jump_relu(pre, torch.tensor([0.2, 0.2, 0.2, 3.0])), torch.tensor([[0.0, 0.3, 0.0, 0.0]]))
    sae = random_sae(jump=0.2)
    assert torch.equal(sae.encode(torch.zeros(5)), torch.where(sae.b_enc > 0.2, sae.b_enc, 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_leading_axes_are_kept(kind, x):
    sae = random_sae(**kind)
    assert sae.encode(x[None, None]).shape == (1, 1, 7, 11)
    assert torch.allclose(sae(x[None])[0], sae(x), atol=1e-6)
    assert (sae.encode(x) >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rescaled_works_on_what_was_scaled(kind, x):
    sae, scale = random_sae(**kind), 3.7
    assert torch.allclose(sae.rescaled(scale)(x), sae(scale * x) / scale, atol=1e-5)
    assert torch.allclose(sae.rescaled(scale).encode(x), sae.encode(scale * x) / scale, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip(kind, x):
    sae = random_sae(**kind)
    again = SAE.from_state({name: value.clone() for name, value in sae.state().items()})
    assert torch.equal(again(x), sae(x))
    assert again.k == sae.k


def test_state_refuses_what_is_no_sae():
    state = random_sae().state()
    with pytest.raises(ValueError, match=r"got \['W_dec', 'b_dec', 'b_enc'\]"):
        SAE.from_state({name: value for name, value in state.items() if name != "W_enc"})
    with pytest.raises(ValueError, match="scale"):
        SAE.from_state(state | {"scale": torch.tensor(1.0)})


def test_wrong_shapes_and_settings_are_refused():
    good = random_sae()
    for W_dec, b_dec in ((good.W_dec.T, good.b_dec), (good.W_dec, good.b_enc)):
        # The shape checks of these tests would see it first; readers run without them.
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            with pytest.raises(ValueError, match=r"W_enc .* goes with W_dec .*: got"):
                SAE(good.W_enc, good.b_enc, W_dec, b_dec)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(ValueError, match="not both"):
        SAE(good.W_enc, good.b_enc, good.W_dec, good.b_dec, k=2, threshold=torch.zeros(11))
    for k in (0, 12):
        with pytest.raises(ValueError, match="k must be from 1 to 11"):
            SAE.random(5, 11, k=k)


def test_random_start_reads_along_what_it_writes():
    sae = SAE.random(6, 20, torch.Generator().manual_seed(0))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()  # tied at the start only
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(20))
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()


def test_loss_by_hand():
    x, x_hat = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    f = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    assert sae_loss(x, x_hat, f, 0.5).item() == pytest.approx((4 + 9) / 2 + 0.5 * (3 + 1) / 2)


# Measures ------------------------------------------------------------------------------------------


def test_l0_and_firing_rates_by_hand():
    f = torch.tensor([[0.0, 2.0, 0.1], [0.0, 0.0, 0.1], [0.0, 1.0, 0.1], [0.0, 0.0, 0.0]])
    assert l0(f) == pytest.approx(5 / 4)
    assert firing_rates(f).tolist() == [0.0, 0.5, 0.75]


def test_variance_unexplained_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])  # squared distances from the mean: 5 and 5
    assert variance_unexplained(x, x) == 0
    assert variance_unexplained(x, x.mean(dim=0).expand(2, 2)) == pytest.approx(1)
    assert variance_unexplained(x, torch.tensor([[0.0, 1.0], [2.0, 4.0]])) == pytest.approx(0.1)
    shifted = x + 100
    assert variance_unexplained(shifted, shifted + 1) == pytest.approx(0.4)  # the mean is not counted as variance
    with pytest.raises(ValueError, match="no variance"):
        variance_unexplained(torch.ones(3, 2), torch.zeros(3, 2))


def test_loss_recovered_by_hand():
    assert loss_recovered(clean=2.0, spliced=2.0, ablated=10.0) == 1
    assert loss_recovered(clean=2.0, spliced=10.0, ablated=10.0) == 0
    assert loss_recovered(clean=2.0, spliced=4.0, ablated=10.0) == pytest.approx(0.75)
    assert loss_recovered(clean=2.0, spliced=4.0, ablated=3.0) == pytest.approx(-1)  # another baseline, another verdict
    with pytest.raises(ValueError, match="nothing to recover"):
        loss_recovered(clean=2.0, spliced=2.0, ablated=2.0)


def test_reconstruction_bias_is_the_shrinkage():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    assert reconstruction_bias(x, x) == pytest.approx(1)
    assert reconstruction_bias(x, 0.7 * x) == pytest.approx(0.7, abs=1e-6)
    x_hat = 0.8 * x + 0.1 * torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    scales = torch.linspace(0.5, 1.2, 701)
    errors = [(x_hat / g - x).square().sum().item() for g in scales.tolist()]
    best = scales[errors.index(min(errors))].item()
    assert reconstruction_bias(x, x_hat) == pytest.approx(best, abs=2e-3)


def test_max_cosines_by_hand():
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    W_dec = torch.tensor([[1.0, 1.0], [0.0, -3.0], [0.0, 0.0]])
    assert max_cosines(features, W_dec).tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0.0])
    assert max_cosines(features[:2], 7 * features[[1, 0]]).tolist() == pytest.approx([1, 1])


# Data whose features are known ---------------------------------------------------------------------


def test_a_world_is_the_same_for_the_same_seed_and_step():
    world = World.random(6, 3, 0.2, seed=4)
    again = World.random(6, 3, 0.2, seed=4)
    assert torch.equal(world.activations(7), again.activations(7))
    assert not torch.equal(world.activations(7), world.activations(8))
    assert not torch.equal(world.directions, World.random(6, 3, 0.2, seed=5).directions)
    assert not torch.equal(world.features(7), World(world.directions, 0.2, seed=5).features(7))
    assert torch.allclose(world.activations(7, 50), world.features(7, 50) @ world.directions)
    assert torch.allclose(world.directions.norm(dim=1), torch.ones(6))


def test_world_features_are_sparse_with_magnitudes():
    f = World.random(6, 3, 0.2).features(0, 50_000)
    assert torch.allclose((f > 0).float().mean(dim=0), torch.full((6,), 0.2), atol=0.01)
    assert f[f > 0].mean().item() == pytest.approx(0.5, abs=0.01)
    assert f.max() < 1
    on = (f > 0).float() - 0.2
    together = (on.T @ on / len(on)).fill_diagonal_(0).abs().max()
    assert together < 0.005  # independent


@pytest.mark.parametrize("together", [0.0, 0.3, 1.0])
def test_co_occurring_keeps_frequencies_and_sets_company(together):
    p = torch.tensor([0.2, 0.2, 0.4, 0.4])
    f = co_occurring(200_000, p, together, torch.Generator().manual_seed(0))
    on = f > 0
    assert torch.allclose(on.float().mean(dim=0), p, atol=0.005)
    for a, b in ((0, 1), (2, 3)):
        assert on[on[:, a], b].float().mean().item() == pytest.approx(together, abs=0.01)
        assert on[on[:, b], a].float().mean().item() == pytest.approx(together, abs=0.01)
    assert on[on[:, 0], 2].float().mean().item() == pytest.approx(0.4, abs=0.01)  # other pairs are independent
    if together:
        both = f[on[:, 0] & on[:, 1], :2]
        assert abs(torch.corrcoef(both.T)[0, 1].item()) < 0.03  # and so are magnitudes


def test_co_occurring_refuses_unequal_pairs():
    for p in ([0.1, 0.2], [0.1, 0.1, 0.1], [0.6, 0.6]):
        with pytest.raises(ValueError, match="pairs of equal probability"):
            co_occurring(10, torch.tensor(p), 0.5)


def test_random_directions_point_everywhere():
    directions = random_directions(4000, 3, torch.Generator().manual_seed(0))
    assert directions.mean(dim=0).abs().max() < 0.05
    assert torch.allclose(directions.T @ directions / 4000, torch.eye(3) / 3, atol=0.02)
    assert torch.allclose(F.normalize(directions, dim=1), directions, atol=1e-6)
