"""Training autoencoders: the gradient by hand against autograd, whole steps against torch's Adam, two processes as one."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from interp_edu import sae_training
from interp_edu.sae_training import BANDWIDTH, Gradients, add_gradients, remove_parallel, resample, train, unit_rows
from interp_edu.sparse_autoencoders import SAE, World, max_cosines, random_directions, variance_unexplained
from tests.test_sparse_autoencoders import random_sae

KINDS = [{}, {"k": 3}, {"jump": 0.2}]
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_parameters(dtype, d_in=5, d_sae=11, k=None, jump=None, seed=0):
    """Nothing is zero, tied or of length 1 by accident; thresholds differ."""
    W_enc, b_enc, W_dec, b_dec = (
        normal(*shape, seed=seed + i, dtype=dtype)
        for i, shape in enumerate([(d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,)])
    )
    threshold = (
        None
        if jump is None
        else jump * (0.5 + torch.rand(d_sae, generator=torch.Generator().manual_seed(seed))).to(dtype)
    )
    return SAE(W_enc, b_enc, W_dec, b_dec, k, threshold)


# The gradient ----------------------------------------------------------------------------------------


class JumpReLU(torch.autograd.Function):
    """As Rajamanoharan et al. 2024b write it: z H(z - t), and by the threshold -(t / e) K((z - t) / e)."""

    @staticmethod
    def forward(ctx, z, t):
        ctx.save_for_backward(z, t)
        return z * (z > t)

    @staticmethod
    def backward(ctx, gradient):
        z, t = ctx.saved_tensors
        kernel = (((z - t) / BANDWIDTH).abs() < 0.5).to(z.dtype)
        return gradient * (z > t), (-t / BANDWIDTH * kernel * gradient).sum(dim=0)


class Step(torch.autograd.Function):
    """H(z - t), whose only gradient is the estimate -(1 / e) K((z - t) / e) by the threshold."""

    @staticmethod
    def forward(ctx, z, t):
        ctx.save_for_backward(z, t)
        return (z > t).to(z.dtype)

    @staticmethod
    def backward(ctx, gradient):
        z, t = ctx.saved_tensors
        kernel = (((z - t) / BANDWIDTH).abs() < 0.5).to(z.dtype)
        return None, (-kernel * gradient / BANDWIDTH).sum(dim=0)


def plain_loss(p, x, sparsity, k=None):
    """The loss of an autoencoder with parameters `p`, in plain autograd."""
    if k is not None:
        pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
        kept = pre.topk(k, dim=1)
        f, penalty = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu()), 0.0
    elif "threshold" in p:
        pre = x @ p["W_enc"] + p["b_enc"]
        f, penalty = JumpReLU.apply(pre, p["threshold"]), Step.apply(pre, p["threshold"]).sum(dim=1).mean()
    else:
        f = torch.relu(x @ p["W_enc"] + p["b_enc"])
        penalty = f.sum(dim=1).mean()
    return ((x - f @ p["W_dec"] - p["b_dec"]) ** 2).sum(dim=1).mean() + sparsity * penalty


def oracle(sae, x, sparsity):
    given = {name: getattr(sae, name).double().clone().requires_grad_() for name in NAMES}
    if sae.threshold is not None:
        given["threshold"] = sae.threshold.double().clone().requires_grad_()
    with torch.enable_grad():
        found = torch.autograd.grad(plain_loss(given, x.double(), sparsity, sae.k), list(given.values()))
    return dict(zip(given, found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [1, 7, 300])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_gradients_equal_autograd(kind, chunks, dtype, rtol, monkeypatch):
    sae, x = random_parameters(dtype, **kind), normal(300, 5, seed=9, dtype=dtype)
    monkeypatch.setattr(sae_training, "CHUNK_FLOATS", 300 * 11 / chunks)
    g = Gradients.zeros(5, 11, dtype)
    add_gradients(sae, x, 0.3, g)
    wanted = oracle(sae, x, 0.3)
    assert set(wanted) == {*NAMES, *(["threshold"] if "jump" in kind else [])}
    for name, want in wanted.items():
        assert want.any(), name
        assert (getattr(g, name).double() - want).abs().max() < rtol * want.abs().max(), name
    f = sae.encode(x)
    assert torch.allclose(g.activity, f.mean(dim=0), atol=1e-5)
    assert g.squared_error.item() == pytest.approx((x - sae.decode(f)).square().sum(dim=1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_parts_add_up(kind):
    sae, x = random_parameters(torch.float64, **kind), normal(20, 5, dtype=torch.float64)
    whole, parts = (Gradients.zeros(5, 11, torch.float64) for _ in range(2))
    add_gradients(sae, x, 0.3, whole)
    for part in (x[::3], x[1::3], x[2::3], x[:0]):  # the last is what a process gets if there are few samples
        add_gradients(sae, part, 0.3, parts, batch=20)
    assert torch.allclose(whole.flat, parts.flat, atol=1e-12)


def test_gradient_by_hand():
    """f = 3 and 0, x_hat = 3 + 1, e = 2 (4 - 2): W_dec gets f e, f gets e W_dec + the penalty, where it is on."""
    sae = SAE(torch.tensor([[1.0, -1.0]]), torch.tensor([1.0, 0.5]), torch.tensor([[1.0], [1.0]]), torch.tensor([1.0]))
    g = Gradients.zeros(1, 2)
    add_gradients(sae, torch.tensor([[2.0]]), 0.25, g)
    assert g.W_dec.tolist() == [[12.0], [0.0]]
    assert g.b_dec.tolist() == [4.0]
    assert g.b_enc.tolist() == [4.25, 0.0]
    assert g.W_enc.tolist() == [[8.5, 0.0]]
    assert (g.activity.tolist(), g.squared_error.item()) == ([3.0, 0.0], 4.0)


def test_a_threshold_by_hand():
    """Switched off, the latent would leave e = 2 (0 - 2): t (-4) + sparsity, over the bandwidth, times minus one."""
    near, far = (
        SAE(torch.eye(1), torch.zeros(1), torch.eye(1), torch.zeros(1), threshold=torch.tensor([t]))
        for t in (2.01, 1.0)
    )
    for sae, want in ((near, -(2.01 * -4 + 0.5) / BANDWIDTH), (far, 0.0)):
        g = Gradients.zeros(1, 1)
        add_gradients(sae, torch.tensor([[2.0]]), 0.5, g)
        assert g.threshold.item() == pytest.approx(want, rel=1e-4)


def test_gradients_share_one_tensor():
    g = Gradients.zeros(4, 6)
    g.flat.fill_(2.0)
    assert all((getattr(g, name) == 2).all() for name in (*NAMES, "threshold", "activity", "squared_error"))
    assert g.W_enc.shape == (4, 6)
    assert g.flat.numel() == 4 * 6 * 2 + 3 * 6 + 4 + 1


def test_a_latent_that_is_off_gets_no_gradient():
    sae = random_sae()
    sae.b_enc[3] = -100.0
    g = Gradients.zeros(5, 11)
    add_gradients(sae, torch.randn(50, 5, generator=torch.Generator().manual_seed(0)), 0.3, g)
    assert not g.W_enc[:, 3].any()
    assert not g.W_dec[3].any()
    assert g.b_enc[3] == 0 == g.activity[3]


# Unit norm -------------------------------------------------------------------------------------------


def test_remove_parallel_and_unit_rows_by_hand():
    W_dec, gradient = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    remove_parallel(gradient, W_dec)
    assert torch.allclose(gradient, torch.tensor([[0.64, -0.48], [0.0, 4.0]]))
    assert torch.allclose((gradient * W_dec).sum(dim=1), torch.zeros(2), atol=1e-7)
    rows = torch.tensor([[3.0, 4.0], [0.1, 0.0]])
    unit_rows(rows)
    assert torch.allclose(rows, torch.tensor([[0.6, 0.8], [1.0, 0.0]]))


@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_autograd_adam_projection_and_renormalisation(kind):
    steps, lr, sparsity = 60, 0.01, 0.2
    sae = random_parameters(torch.float64, **kind)
    p = {name: getattr(sae, name).clone().requires_grad_() for name in NAMES}
    if sae.threshold is not None:
        p["threshold"] = sae.threshold.clone().requires_grad_()
    data = [normal(40, 5, seed=step, dtype=torch.float64) for step in range(steps)]
    d = p["W_dec"]
    d.data /= d.data.norm(dim=1, keepdim=True)
    adam = torch.optim.Adam(p.values(), lr=lr)
    for step, x in enumerate(data):
        warm = min(1.0, (step + 1) / 3)  # a twentieth of 60 steps
        adam.param_groups[0]["lr"] = lr * min(warm, (60 - step) / 12)  # the last fifth
        adam.zero_grad()
        plain_loss(p, x, sparsity * warm, sae.k).backward()
        d.grad -= (d.grad * d.data).sum(dim=1, keepdim=True) * d.data
        adam.step()
        d.data /= d.data.norm(dim=1, keepdim=True)
        if "threshold" in p:
            p["threshold"].data.clamp_(min=0)
    lengths = []
    log = train(
        sae,
        data.__getitem__,
        steps=steps,
        sparsity=sparsity,
        lr=lr,
        on_step=lambda _: lengths.append(sae.W_dec.norm(dim=1)),
    )
    for name, want in p.items():
        assert torch.allclose(getattr(sae, name), want.data, atol=1e-7), name
    assert len(log.squared_error) == len(lengths) == steps
    assert torch.allclose(torch.stack(lengths), torch.ones(steps, 11, dtype=torch.float64), atol=1e-12)


def test_learning_rate_rises_and_falls():
    """All latents off, and x so far away that the gradient of b_dec stays as it is: Adam moves it by the rate."""
    sae, path = SAE.random(2, 3), [torch.zeros(2)]
    sae.b_enc[:] = -1e9
    train(
        sae, lambda step: torch.full((4, 2), 1e6), steps=100, lr=0.5, on_step=lambda _: path.append(sae.b_dec.clone())
    )
    rates = torch.stack(path).diff(dim=0)[:, 0] / 0.5
    want = [0.2, 0.4, 0.6, 0.8] + [1.0] * 77 + [(100 - step) / 20 for step in range(81, 100)]
    assert rates.tolist() == pytest.approx(want, abs=1e-3)


def test_thresholds_do_not_get_negative():
    sae, seen = random_sae(jump=0.02), []
    train(
        sae,
        lambda step: normal(40, 5, seed=step),
        steps=30,
        lr=0.02,
        on_step=lambda _: seen.append(sae.threshold.min().item()),
    )
    assert min(seen) == 0


def test_training_from_a_tied_start_and_on_samples_of_another_dtype():
    """A tied start may be one tensor for both; samples may come from numpy."""
    W_dec = F.normalize(normal(11, 5), dim=1)
    tied = SAE(W_dec.T, torch.zeros(11), W_dec.clone(), torch.zeros(5))
    tied.W_enc = tied.W_dec.T
    apart = SAE(W_dec.T.clone(), torch.zeros(11), W_dec.clone(), torch.zeros(5))
    for sae, dtype in ((tied, torch.float64), (apart, torch.float32)):
        train(sae, lambda step, dtype=dtype: normal(30, 5, seed=step).to(dtype), steps=10, sparsity=0.1)
    assert torch.equal(tied.W_enc, apart.W_enc)
    assert torch.equal(tied.W_dec, apart.W_dec)
    assert not torch.allclose(tied.W_enc, tied.W_dec.T, atol=1e-3)


def test_training_refuses_a_wrong_batch_and_tells_of_a_loss_that_explodes():
    with pytest.raises(ValueError, match=r"must be \[batch, 5\], not \[3, 4\]"):
        train(random_sae(), lambda step: torch.zeros(3, 4), steps=1)
    with pytest.raises(ValueError, match="loss of step 0 is nan: lower the learning rate"):
        train(random_sae(), lambda step: torch.full((3, 5), float("nan")), steps=1)


# Dead latents ----------------------------------------------------------------------------------------


def with_dead(dead=(1, 4, 7), **kind):
    sae = random_sae(**kind)
    sae.b_enc[list(dead)] = -1000.0
    sae.W_enc[:, list(dead)] = 50.0
    if sae.threshold is not None:
        sae.threshold[list(dead)] = 30.0
    return sae, torch.tensor(dead)


@pytest.mark.parametrize("kind", KINDS)
def test_resampling_gives_each_a_badly_explained_sample_of_its_own(kind):
    sae, dead = with_dead(**kind)
    before = {name: value.clone() for name, value in sae.state().items()}
    x = normal(60, 5, seed=5) + 2
    assert torch.equal(resample(sae, dead, x, torch.Generator().manual_seed(0)), dead)
    nearest = (F.normalize(x - sae.b_dec, dim=1) @ sae.W_dec[dead].T).max(dim=0)
    assert torch.allclose(nearest.values, torch.ones(3), atol=1e-5)
    assert len(set(nearest.indices.tolist())) == 3  # not all one direction
    alive = [i for i in range(11) if i not in dead]
    length = 0.2 * before["W_enc"][:, alive].norm(dim=0).mean()
    assert torch.allclose(sae.W_enc[:, dead], length * sae.W_dec[dead].T, atol=1e-6)
    assert torch.equal(sae.W_enc[:, alive], before["W_enc"][:, alive])  # the living stay as they were
    assert torch.equal(sae.W_dec[alive], before["W_dec"][alive])
    assert torch.equal(sae.b_enc[alive], before["b_enc"][alive])
    assert torch.equal(sae.b_dec, before["b_dec"])
    # In the middle a newcomer is just about to be on, whether the encoder centres x or not; for its sample it is on.
    edge = torch.zeros(3) if sae.threshold is None else sae.threshold[dead]
    chosen = x[nearest.indices]
    pre = sae.pre_activations(chosen)[range(3), dead]
    assert torch.allclose(pre - edge, length * (chosen - sae.b_dec).norm(dim=1), rtol=1e-3)
    assert torch.allclose(sae.pre_activations(sae.b_dec[None])[0, dead], edge, atol=1e-4)


def test_resampling_prefers_bad_samples_by_the_square_of_their_loss():
    sae = SAE.random(2, 3, torch.Generator().manual_seed(0))
    sae.W_enc.zero_()  # nothing is explained: the loss is |x|^2
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0**0.5]])  # losses 1 and 2, so probabilities 1/5 and 4/5
    second = 0
    for seed in range(1000):
        resample(sae, torch.tensor([0]), x, torch.Generator().manual_seed(seed))
        second += int(sae.W_dec[0, 1] > 0.5)
    assert second / 1000 == pytest.approx(0.8, abs=0.04)


def test_resampling_with_few_samples_none_dead_all_dead_or_nothing_to_explain():
    sae, dead = with_dead()
    assert resample(sae, dead, normal(2, 5)).tolist() == [1, 4]  # the rest waits
    assert sae.b_enc[7] == -1000
    living = sae.W_enc[:, [i for i in range(11) if i not in (1, 4, 7)]].norm(dim=0).mean()
    assert torch.allclose(sae.W_enc[:, [1, 4]].norm(dim=0), 0.2 * living)  # who waits does not count as living
    assert resample(sae, dead[:0], normal(9, 5)).tolist() == []
    sae, dead = with_dead()
    assert len(resample(sae, torch.arange(11), normal(30, 5))) == 11
    assert torch.allclose(sae.W_enc.norm(dim=0), torch.full((11,), 0.2))  # nobody living to go by
    perfect = SAE(torch.zeros(5, 11), torch.zeros(11), sae.W_dec.clone(), torch.zeros(5))
    x = torch.zeros(30, 5)
    assert resample(perfect, dead, x).tolist() == []
    assert torch.equal(perfect.W_dec, sae.W_dec)
    x[:2] = normal(2, 5)  # two samples are not explained, three latents are dead
    assert resample(perfect, dead, x).tolist() == [1, 4]


def test_adam_forgets_the_revived_and_nobody_else():
    sae = random_sae(jump=0.2)
    given = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, "threshold": sae.threshold}
    parameters = {name: torch.nn.Parameter(value) for name, value in given.items()}
    adam = torch.optim.Adam(parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    sae_training._forget(adam, parameters, torch.tensor([2, 5]))
    for name, parameter in parameters.items():
        for key in ("exp_avg", "exp_avg_sq"):
            average = adam.state[parameter][key]
            latents = average.T if name == "W_enc" else average
            forgotten = [] if name == "b_dec" else [2, 5]
            assert not latents[forgotten].any()
            assert latents[[i for i in range(len(latents)) if i not in forgotten]].all(), name


def test_revival_stops_early_enough():
    sae = SAE.random(4, 6)
    sae.W_dec.zero_()  # no direction, so nothing is learned, and in the end nothing is on
    log = train(sae, lambda step: normal(8, 4, seed=step), steps=100, resample_every=10)
    assert list(log.revived) == [10, 20, 30, 40, 50, 60, 70]


def test_training_revives_what_never_fires():
    world, on = World.random(12, 8, 0.1), {}
    for every in (None, 50):
        sae = SAE.random(8, 24, torch.Generator().manual_seed(0))
        sae.b_enc[:10] = -10.0
        log = train(sae, world.activations, steps=300, sparsity=0.1, resample_every=every)
        on[every] = (sae.encode(world.activations(999, 20_000)) > 0).any(dim=0)[:10].float().mean()
        assert (log.revived == {}) if every is None else (log.revived[50] == 10 and sum(log.revived.values()) < 20)
    assert on[None] == 0
    assert on[50] > 0.7


def test_training_revives_what_falls_silent_and_adam_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(sae_training, "_forget", lambda optimizer, parameters, latents: told.append(latents.tolist()))
    world, sae = World.random(12, 8, 0.1), SAE.random(8, 24, torch.Generator().manual_seed(0))
    sae.b_enc[7] = -1000.0

    def silence(step):
        if step == 60:
            sae.b_enc[3] = -1000.0

    train(sae, world.activations, steps=300, sparsity=0.1, resample_every=50, on_step=silence)
    assert [7 in latents for latents in told[:2]] == [True, False]
    assert [3 in latents for latents in told[:3]] == [False, False, True]  # it was on from step 50 to 60


# What it finds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sparsity", "lr"),
    [({}, 0.3, 5e-3), ({"k": 2}, 0.0, 5e-3), ({"jump": 0.1}, 0.05, 1e-2)],
)
def test_it_finds_the_features_of_a_known_world(kind, sparsity, lr):
    """JumpReLU takes larger steps: its thresholds, and with them what a latent stands for, move slowly."""
    world = World.random(24, 16, 0.05, seed=1)
    sae = SAE.random(16, 48, torch.Generator().manual_seed(0), **kind)
    train(sae, lambda step: world.activations(step, 512), steps=1000, sparsity=sparsity, lr=lr)
    x, found = world.activations(9_999), max_cosines(world.directions, sae.W_dec)
    assert (found > 0.95).float().mean() >= 0.9
    assert variance_unexplained(x, sae(x)) < 0.2


def test_it_finds_nothing_where_there_is_nothing():
    directions = random_directions(24, 16, torch.Generator().manual_seed(7))
    by_chance = max_cosines(directions, random_directions(48, 16, torch.Generator().manual_seed(1)))
    for kind, sparsity in (({}, 0.3), ({"k": 2}, 0.0)):  # the settings that find all of them above
        sae = SAE.random(16, 48, torch.Generator().manual_seed(0), **kind)
        train(sae, lambda step: normal(512, 16, seed=step) / 4, steps=800, sparsity=sparsity, lr=5e-3)
        found = max_cosines(directions, sae.W_dec)
        assert abs(found.mean() - by_chance.mean()) < 0.06
        assert not (found > 0.95).any()


# Many processes --------------------------------------------------------------------------------------

TOGETHER = """
import json, os, sys, torch
import torch.distributed as dist
from tests.test_sae_training import in_parallel

rank, folder, kinds = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.save([in_parallel(**kind) for kind in kinds], f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def in_parallel(**kind):
    """What a training gives, in one process or as one of several; some latents are dead."""
    world = World.random(12, 8, 0.1)
    sae = SAE.random(8, 24, torch.Generator().manual_seed(0), **kind)
    sae.b_enc[:6] = -10.0
    log = train(sae, lambda step: world.activations(step, 101), steps=60, sparsity=0.1, resample_every=20)
    return sae.state() | {"error": torch.tensor(log.squared_error), "revived": torch.tensor(list(log.revived.values()))}


def test_two_processes_give_what_one_gives(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(rank), str(tmp_path), json.dumps(KINDS)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    for kind, *together in zip(KINDS, *(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        one = in_parallel(**kind)
        assert one["revived"][0] == 6
        for other in together:
            assert other.keys() == one.keys()
            for name, value in one.items():
                assert torch.allclose(value.float(), other[name].float(), atol=1e-4), (kind, name)


def test_a_share_of_the_batch_is_not_the_batch(monkeypatch):
    """The test above could not fail if both processes saw everything: with one of two shares alone, it does differ."""
    world = World.random(12, 8, 0.1)
    alone, half = (SAE.random(8, 24, torch.Generator().manual_seed(0)) for _ in range(2))
    train(alone, lambda step: world.activations(step, 100), steps=20, sparsity=0.1)
    ranks = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 0, get_world_size=lambda: 2)
    monkeypatch.setattr(sae_training, "dist", SimpleNamespace(**vars(ranks), all_reduce=lambda flat: None))
    train(half, lambda step: world.activations(step, 100), steps=20, sparsity=0.1)
    assert not torch.allclose(alone.W_dec, half.W_dec, atol=1e-3)


def test_how_the_decoder_lies_in_memory_does_not_matter():
    world = World.random(12, 8, 0.1)
    rows, columns = (SAE.random(8, 24, torch.Generator().manual_seed(0)) for _ in range(2))
    columns.W_dec = columns.W_dec.T.contiguous().T
    for sae in (rows, columns):
        train(sae, world.activations, steps=20, sparsity=0.1)
    assert torch.allclose(rows.W_dec, columns.W_dec, atol=1e-5)
