"""Harvested activations against the model's own, harvests that stop and go on, and what is trained on them."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from interp_edu import harvest as harvesting
from interp_edu.harvest import Store, fingerprint, harvest, train_sae
from interp_edu.hooks import hooked, run_with_cache
from interp_edu.sae_training import train
from interp_edu.sparse_autoencoders import SAE, variance_unexplained
from tests.test_transformer import SHAPE, random_model

SITE = "blocks.1.hook_resid_post"
ABOUT = {"shards": 3, "source": "random tokens"}


def rows_of(i, batch=4, length=9):
    return torch.randint(SHAPE.d_vocab, (batch, length), generator=torch.Generator().manual_seed(100 + i))


class Counted:
    """Rows that remember for which shards they were asked."""

    def __init__(self, rows=rows_of):
        self.rows, self.asked = rows, []

    def __call__(self, i):
        self.asked.append(i)
        return self.rows(i)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(folder, parts):
    """A store of these activations."""
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(parts):
        np.save(folder / f"{i:05d}.npy", np.asarray(part, dtype=np.float16))
    return Store(folder, len(parts))


@pytest.fixture
def store(tmp_path):
    """Activations that are neither centred nor of unit size, with some structure to find."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(12, 6, generator=generator)
    on = (torch.rand(3, 400, 12, generator=generator) < 0.1) * torch.rand(3, 400, 12, generator=generator)
    return written(tmp_path / "store", 5 * (on @ directions) + torch.tensor([3.0, 0.0, -2.0, 0.0, 1.0, 0.0]))


# What the shards hold --------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize(
    "site", ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.1.mlp.hook_post", SITE]
)
def test_shards_hold_the_activations_in_row_order(site, skip, tmp_path):
    model = random_model()
    store = harvest(model, site, rows_of, tmp_path, **ABOUT, skip=skip)
    assert store.shards == 3
    for i in range(3):
        seen = []
        with hooked(model, [(site, lambda x, hook, seen=seen: seen.append(x))]):  # the whole model, by another way
            model(rows_of(i))
        expected = [seen[0][row, pos].half().numpy() for row in range(4) for pos in range(skip, 9)]
        found = np.load(tmp_path / f"{i:05d}.npy")
        assert found.dtype == np.float16
        assert found.shape == (len(expected), seen[0].shape[2])
        assert np.allclose(found.astype(float), np.stack(expected).astype(float), atol=1e-5, rtol=2e-3)  # an ulp
    assert len(store) == 3 * 4 * (9 - skip)
    assert store.d == seen[0].shape[2]


def test_the_first_position_is_left_out_by_default(tmp_path):
    assert len(harvest(random_model(), SITE, rows_of, tmp_path, **ABOUT)) == 3 * 4 * 8


def test_no_more_of_the_model_runs_than_is_needed(tmp_path, monkeypatch):
    stops = []

    def spy(*args, **kwargs):
        stops.append(kwargs["stop_at_layer"])
        return run_with_cache(*args, **kwargs)

    monkeypatch.setattr(harvesting, "run_with_cache", spy)
    for i, site in enumerate(("blocks.0.hook_mlp_out", SITE, "ln_final.hook_normalized")):
        harvest(random_model(), site, rows_of, tmp_path / str(i), shards=1, source="")
    assert stops == [1, 2, None]


def test_nothing_is_kept_for_backward_and_the_model_stays_as_it_is(tmp_path):
    model = random_model().requires_grad_(True)
    before = fingerprint(model)
    with torch.enable_grad():
        store = harvest(model, SITE, rows_of, tmp_path, **ABOUT)
        assert torch.is_grad_enabled()
    assert not store.batch(0, 5).requires_grad
    assert fingerprint(model) == before
    assert not model.attached


def test_fingerprint():
    model = random_model()
    assert fingerprint(model) == fingerprint(random_model())
    assert fingerprint(model) != fingerprint(random_model(seed=1))
    other = random_model()
    other.cfg = dataclasses.replace(other.cfg, eps=1e-3)
    assert fingerprint(model) != fingerprint(other)
    model.blocks[1].attn.b_K.data[0, 0] += 1e-6
    assert fingerprint(model) != fingerprint(random_model())


# Stopping and going on -------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again(tmp_path):
    rows, steps = Counted(), []
    harvest(random_model(), SITE, rows, tmp_path, **ABOUT, on_step=steps.append)
    assert rows.asked == [0, 0, 1, 2]  # the first for its length
    assert steps == [0, 1, 2]
    before, rows.asked = files(tmp_path), []
    assert set(before) == {"about.json", "00000.npy", "00001.npy", "00002.npy"}
    harvest(random_model(), SITE, rows, tmp_path, **ABOUT, on_step=steps.append)
    assert rows.asked == [0]
    assert steps[3:] == [0, 1, 2]
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "00001.npy").unlink()
    rows.asked = []
    harvest(random_model(), SITE, rows, tmp_path, **ABOUT)
    assert rows.asked == [0, 1]
    assert files(tmp_path) == before
    assert {name for name in before if (tmp_path / name).stat().st_mtime_ns == times[name]} >= {
        "00000.npy",
        "00002.npy",
    }


def test_more_shards_are_added(tmp_path):
    rows = Counted()
    harvest(random_model(), SITE, rows, tmp_path, shards=2, source="")
    rows.asked = []
    assert len(harvest(random_model(), SITE, rows, tmp_path, shards=4, source="")) == 4 * 32
    assert rows.asked == [0, 2, 3]
    assert len(harvest(random_model(), SITE, rows, tmp_path, shards=1, source="")) == 32  # or fewer are used


def test_an_interrupted_write_leaves_no_half_file(tmp_path, monkeypatch):
    whole = harvest(random_model(), SITE, rows_of, tmp_path / "whole", **ABOUT)
    saved, calls = np.save, []

    def torn(file, arr):
        calls.append(file)
        if len(calls) == 2:
            Path(file).write_bytes(b"half of it")
            raise KeyboardInterrupt
        saved(file, arr)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            harvest(random_model(), SITE, rows_of, tmp_path / "torn", **ABOUT)
    found = {path.name for path in (tmp_path / "torn").glob("0*.npy")}
    assert found == {"00000.npy"}
    rows = Counted()
    harvest(random_model(), SITE, rows, tmp_path / "torn", **ABOUT)
    assert rows.asked == [0, 1, 2]
    assert files(tmp_path / "torn") == files(whole.folder)


def test_an_interruption_between_shards(tmp_path):
    def stop(i):
        if i == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(random_model(), SITE, rows_of, tmp_path, **ABOUT, on_step=stop)
    rows = Counted()
    harvest(random_model(), SITE, rows, tmp_path, **ABOUT)
    assert rows.asked == [0, 2]


# What is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": random_model(seed=1)}, f"model: '{fingerprint(random_model())}'"),
        ({"site": "blocks.0.hook_resid_post"}, f"site: '{SITE}'"),
        ({"source": "another text"}, "source: 'random tokens'"),
        ({"skip": 2}, "skip: 1, samples: 32"),
        ({"rows": lambda i: rows_of(i, batch=5)}, "samples: 32"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_another_harvest_in_the_same_folder(change, says, tmp_path):
    given = {"model": random_model(), "site": SITE, "rows": rows_of, "folder": tmp_path, **ABOUT}
    harvest(**given)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="holds another harvest") as error:
        harvest(**given | change)
    assert f"({says})" in str(error.value)  # that, and nothing else
    assert "choose another folder, or delete it" in str(error.value)
    assert files(tmp_path) == before


def test_hooks_attached(tmp_path):
    model = random_model()
    with (
        hooked(model, [("blocks.0.hook_mlp_out", lambda x, hook: x * 0)]),
        pytest.raises(ValueError, match="hooks are attached"),
    ):
        harvest(model, SITE, rows_of, tmp_path / "store", **ABOUT)
    assert not (tmp_path / "store").exists()
    harvest(model, SITE, rows_of, tmp_path / "store", **ABOUT)  # gone with the block


def test_a_site_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"no hook point 'blocks.1.hook_resid_pst'; the nearest are .*resid_post"):
        harvest(random_model(), "blocks.1.hook_resid_pst", rows_of, tmp_path / "store", **ABOUT)
    with pytest.raises(ValueError, match=r"no hook point 'blocks.2.hook_resid_post'"):
        harvest(random_model(), "blocks.2.hook_resid_post", rows_of, tmp_path / "store", **ABOUT)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("site", ["blocks.0.attn.hook_z", "blocks.0.attn.hook_pattern", "blocks.1.attn.hook_result"])
def test_a_site_without_one_vector_for_each_token(site, tmp_path):
    with pytest.raises(ValueError, match=rf"{re.escape(site)} is \[4, .*\]: harvest at a site of shape"):
        harvest(random_model(), site, rows_of, tmp_path, **ABOUT)
    assert files(tmp_path) == {}  # so that the right site may go there


def test_rows_of_another_length(tmp_path):
    for i, change in enumerate(({"batch": 3}, {"length": 8}, {"batch": 5})):

        def uneven(shard, change=change):
            return rows_of(shard, **change if shard == 2 else {})

        folder = tmp_path / str(i)
        samples = {"batch": 4, "length": 9} | change
        n = samples["batch"] * (samples["length"] - 1)
        with pytest.raises(ValueError, match=f"shard 2 has {n} tokens, but the first has 32"):
            harvest(random_model(), SITE, uneven, folder, **ABOUT)
        assert {path.name for path in folder.glob("*.npy")} == {"00000.npy", "00001.npy"}


@pytest.mark.parametrize("skip", [-1, 9, 10])
def test_a_skip_that_leaves_nothing(skip, tmp_path):
    with pytest.raises(ValueError, match=f"rows have 9 tokens, so skip must be from 0 to one less: got {skip}"):
        harvest(random_model(), SITE, rows_of, tmp_path, **ABOUT, skip=skip)
    assert not files(tmp_path)


def test_values_that_float16_does_not_hold(tmp_path):
    model = random_model()
    model.blocks[1].mlp.b_out.data[3] = 1e5
    with pytest.raises(ValueError, match="float16 cannot hold"):
        harvest(model, SITE, rows_of, tmp_path, **ABOUT)
    assert not list(tmp_path.glob("*.npy"))


# The store -------------------------------------------------------------------------------------------


def test_batches_follow_from_step_and_seed(store):
    batch = store.batch(3, 50, seed=1)
    assert batch.shape == (50, 6)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, store.batch(3, 50, seed=1))
    assert torch.equal(batch, Store(store.folder, 3).batch(3, 50, seed=1))
    assert not torch.equal(batch, store.batch(4, 50, seed=1))
    assert not torch.equal(batch, store.batch(3, 50, seed=2))
    assert not torch.equal(batch, store.batch(1, 50, seed=3))  # step and seed are not added
    assert torch.equal(store.batch(3, 50), store.batch(3, 50, seed=0))


def test_batches_are_drawn_uniformly_from_all_shards(tmp_path):
    numbers = np.arange(4 * 25).reshape(4, 25, 1) + np.array([0.0, 1000.0])
    store = written(tmp_path, numbers)
    assert (len(store), store.d) == (100, 2)
    drawn = torch.cat([store.batch(step, 500) for step in range(100)])
    assert torch.equal(drawn[:, 1], drawn[:, 0] + 1000)  # a sample stays together
    counts = torch.bincount(drawn[:, 0].long(), minlength=100)
    assert len(counts) == 100
    chi2 = ((counts - 500) ** 2 / 500).sum().item()
    assert 99 - 4 * 198**0.5 < chi2 < 99 + 4 * 198**0.5  # neither too uneven nor too even for chance
    first = store.batch(0, 100)[:, 0]
    assert len(first.unique()) < 80  # with replacement: 63 different ones are expected
    followers = torch.stack([first[:-1], first[1:]])
    assert abs(torch.corrcoef(followers)[0, 1].item()) < 0.4  # in random order


def test_mean_and_scale_by_hand(tmp_path):
    first, second = [[1.0, 0.0], [3.0, 4.0], [5.0, 2.0]], [[100.0, 0.0]] * 3
    store = written(tmp_path, [first, second])
    assert store.mean.tolist() == [3.0, 2.0]  # of the first shard
    # squared distances from the mean: 8, 4, 4, so 16/3 on average, and d = 2
    assert store.scale == pytest.approx((2 / (16 / 3)) ** 0.5, rel=1e-6)
    scaled = store.scale * torch.tensor(first)
    assert (scaled - scaled.mean(dim=0)).square().sum(dim=1).mean().item() == pytest.approx(2, rel=1e-6)


def test_no_variance_no_scale(tmp_path):
    store = written(tmp_path, [[[2.0, -1.0]] * 5])
    for ask in (lambda: store.scale, lambda: train_sae(store, 4, steps=1, k=1)):
        with pytest.raises(ValueError, match=r"00000\.npy are alike: there is nothing to take apart"):
            ask()


# An autoencoder of it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [{}, {"k": 2, "sparsity": 0.5}, {"sparsity": 0.0}, {"sparsity": -0.5}, {"k": 2, "sparsity": -0.5}, {"jump": 0.1}],
    ids=str,
)
def test_exactly_one_of_k_and_sparsity(given, store):
    with pytest.raises(ValueError, match=r"give k .* or a sparsity above zero .* not both"):
        train_sae(store, 12, steps=1, **given)


def test_k_with_jump(store):
    with pytest.raises(ValueError, match="not both"):
        train_sae(store, 12, steps=1, k=2, jump=0.1)


@pytest.mark.parametrize("kind", [{"k": 2}, {"sparsity": 0.5}, {"sparsity": 0.1, "jump": 0.05}], ids=str)
def test_it_is_trained_on_scaled_samples_and_returned_for_samples_as_they_are(kind, store):
    settings = {"steps": 150, "lr": 3e-3, "resample_every": 50, "seed": 5}
    sae = train_sae(store, 20, batch=128, **kind, **settings)
    shard = torch.tensor(np.load(store.folder / "00000.npy"), dtype=torch.float64)
    mean = shard.mean(dim=0)
    scale = (6 / (shard - mean).square().sum(dim=1).mean()).sqrt().item()
    assert abs(scale - 1) > 0.2  # else this test could not tell
    by_hand = SAE.random(6, 20, torch.Generator().manual_seed(5), k=kind.get("k"), jump=kind.get("jump"))
    by_hand.b_dec = (mean * scale).float()
    train(
        by_hand,
        lambda step: store.batch(step, 128, seed=5) * scale,
        sparsity=kind.get("sparsity", 0.0),
        **settings,
    )
    x = torch.cat([torch.tensor(np.load(path), dtype=torch.float32) for path in sorted(store.folder.glob("*.npy"))])
    assert (sae.k, sae.threshold is None) == (kind.get("k"), "jump" not in kind)
    assert torch.allclose(sae(x), by_hand(scale * x) / scale, atol=1e-3)
    fvu = variance_unexplained(x, sae(x))
    assert fvu == pytest.approx(variance_unexplained(scale * x, by_hand(scale * x)), abs=1e-4)
    assert fvu < 0.3
    assert variance_unexplained(scale * x, sae(scale * x)) > fvu + 0.02
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(20), atol=1e-5)


def test_defaults_and_steps(store):
    steps = []
    short = train_sae(store, 12, steps=3, k=2, on_step=steps.append)
    assert steps == [0, 1, 2]
    again = train_sae(store, 12, steps=3, k=2, batch=2048, lr=1e-3, seed=0)
    assert torch.equal(short.W_enc, again.W_enc)
    other = train_sae(store, 12, steps=3, k=2, seed=1)
    assert not torch.allclose(short.W_enc, other.W_enc, atol=0.1)


def test_settings_reach_the_loop(store, monkeypatch):
    given = []
    monkeypatch.setattr(harvesting, "train", lambda sae, batches, **settings: given.append((batches(7), settings)))
    train_sae(store, 12, steps=9, sparsity=0.3, batch=11, lr=0.02, resample_every=4, seed=3)
    batch, settings = given[0]
    assert torch.allclose(batch, store.batch(7, 11, seed=3) * store.scale)
    expected = {"steps": 9, "sparsity": 0.3, "lr": 0.02, "resample_every": 4, "seed": 3, "on_step": None}
    assert settings == expected


# Several processes -----------------------------------------------------------------------------------

TOGETHER = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from tests.test_harvest import Counted, harvest_and_train

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://" + str(folder / "rendezvous"), rank=rank, world_size=2)
rows = Counted()
there, sae = harvest_and_train(rows, folder / "store")
(folder / f"{rank}.json").write_text(json.dumps({"asked": rows.asked, "there": there}))
torch.save(sae.state(), folder / f"{rank}.pt")
"""


def harvest_and_train(rows, folder):
    """The files that are there after the harvest, and an SAE."""
    store = harvest(random_model(), SITE, rows, folder, shards=5, source="random tokens")
    there = sorted(path.name for path in folder.iterdir())
    return there, train_sae(store, 40, steps=60, k=3, batch=101, resample_every=20, seed=2)


def test_two_processes_share_the_work_and_train_what_one_trains(tmp_path):
    command = [sys.executable, "-c", TOGETHER, str(tmp_path)]
    fixed = {**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command, cwd=Path(__file__).parents[1], env=fixed | {"RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    rows = Counted()
    there, alone = harvest_and_train(rows, tmp_path / "alone")
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in "01"]
    assert rows.asked == [0, 0, 1, 2, 3, 4]
    assert [one["asked"] for one in said] == [[0, 0, 2, 4], [0, 1, 3]]
    assert there == [f"{i:05d}.npy" for i in range(5)] + ["about.json"]
    assert [one["there"] for one in said] == [there, there]  # nobody goes on before all shards are there
    for i in range(5):
        one, two = (np.load(tmp_path / name / f"{i:05d}.npy").astype(float) for name in ("alone", "store"))
        assert np.allclose(one, two, atol=1e-5, rtol=2e-3)
    for rank in "01":
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == alone.state().keys()
        for name, expected in alone.state().items():
            assert torch.allclose(found[name].float(), expected.float(), atol=1e-4), name
