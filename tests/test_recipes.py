"""Chapter 6's small models: their data, their training in small, and that the shipped ones are what they are said to be."""

import pytest
import torch
import torch.nn.functional as F

from interp_edu import pretrained, recipes, weights
from interp_edu.pretrained import load, small_config
from interp_edu.transformer import Transformer
from tests.test_induction_heads import is_made_of_phrases

SEEDS = (0, 1, 2)


def period(row):
    """The smallest distance at which a row repeats itself, throughout."""
    return next(n for n in range(1, len(row)) if row[n:] == row[:-n])


@pytest.mark.parametrize("name", pretrained.SMALL)
def test_rows(name):
    rows = recipes.small_rows(name, 0, 5)
    assert rows.shape == (64, 48)
    assert rows.dtype == torch.int64
    assert (rows[:, 0] == 0).all()
    assert rows[:, 1:].min() == 1
    assert rows.max() == 48
    if name == "distances-2l":
        periods = [period(row) for row in rows[:, 1:].tolist()]
        assert set(periods) == {8, 9, 10, 11, 12}
    else:
        assert all(is_made_of_phrases(tuple(row), 4, 4) for row in rows[:, 1:].tolist())
        assert torch.equal(rows, recipes.small_rows("phrases-1l", 0, 5))  # one layer or two, they read the same
    assert torch.equal(rows, recipes.small_rows(name, 0, 5))  # the step and the seed say all
    for other in (recipes.small_rows(name, 0, 6), recipes.small_rows(name, 1, 5), recipes.small_rows(name, -1, 0)):
        assert not torch.equal(rows, other)
    assert recipes.small_rows(name, 0, 5, rows=3).shape == (3, 48)


def test_no_rows_are_seen_twice():
    """Over all seeds and steps of training, and the rows that the losses are measured on."""
    starts = {(seed, step) for seed in SEEDS for step in range(recipes.SMALL_STEPS)}
    assert len({10_000 * seed + step for seed, step in starts} | {-10_000}) == len(starts) + 1
    seen = torch.cat([recipes.small_rows("phrases-2l", seed, step) for seed in SEEDS for step in (0, 1, 699)])
    held_out = recipes.small_rows("phrases-2l", -1, 0, rows=200)
    assert len(torch.cat([seen, held_out]).unique(dim=0)) == len(seen) + 200


@pytest.fixture
def short(monkeypatch):
    """A training of 20 steps, measured at 0, 10 and 20, of which 0 and 10 are kept too."""
    monkeypatch.setattr(recipes, "SMALL_STEPS", 20)
    monkeypatch.setattr(recipes, "SMALL_CHECKPOINTS", (0, 10))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_training_is_seeded_and_measuring_does_not_disturb_it(short, monkeypatch):
    name = "distances-2l"
    weights_at, curve = recipes.train_small(name, 1)
    again, curve_again = recipes.train_small(name, 1)
    assert set(weights_at) == {0, 10, 20}
    assert all(equal(weights_at[step], again[step]) for step in weights_at)
    assert equal(curve, curve_again)
    monkeypatch.setattr(recipes, "CURVE_EVERY", 20)
    monkeypatch.setattr(recipes, "SMALL_CHECKPOINTS", ())
    rarely, _ = recipes.train_small(name, 1)
    assert set(rarely) == {20}
    assert equal(rarely[20], weights_at[20])

    start = Transformer(small_config(name), torch.Generator().manual_seed(1))
    assert equal(weights_at[0], start.state_dict())
    assert {key: tuple(value.shape) for key, value in curve.items()} == {
        "losses": (3, 47),
        "previous": (3, 2, 4),
        "induction": (3, 2, 4),
    }
    for i, step in enumerate((0, 10, 20)):
        start.load_state_dict(weights_at[step])
        measured = recipes.small_measured(start, name)
        assert all(torch.equal(measured[key], curve[key][i]) for key in curve)
    means = curve["losses"].mean(dim=1)
    assert means[0] == pytest.approx(torch.tensor(49.0).log().item(), abs=0.05)  # it knows nothing yet
    assert means[2] < means[1] < means[0]


def test_the_recipe_writes_what_load_reads(monkeypatch):
    monkeypatch.setattr(recipes, "SMALL_STEPS", 2)
    monkeypatch.setattr(recipes, "SMALL_CHECKPOINTS", (0, 1))
    monkeypatch.setattr(recipes, "CURVE_EVERY", 2)
    monkeypatch.setattr(pretrained, "COURSE_SEEDS", (0, 1))
    tensors = recipes.RECIPES["small"].make(weights.FOLDER / "small.unfinished")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    monkeypatch.setattr(weights, "load", lambda name: {key: value.float() for key, value in tensors.items()})
    for name in pretrained.SMALL:
        assert tensors[f"curves.{name}.losses"].shape == (2, 2, 47)
        assert tensors[f"curves.{name}.induction"].shape == (2, 2, small_config(name).n_layers, 4)
        for seed in (0, 1):
            measured = recipes.small_measured(load(name, seed=seed), name)
            for key, value in measured.items():
                assert torch.allclose(tensors[f"curves.{name}.{key}"][seed, -1].float(), value, atol=0.005)
    start = Transformer(small_config("phrases-2l"), torch.Generator().manual_seed(0)).state_dict()
    first, second, end = (load("phrases-2l", step=step).state_dict() for step in (0, 1, None))
    assert equal(first, {key: value.half().float() for key, value in start.items()})
    assert not equal(first, second)
    assert not equal(second, end)
    assert not any("@" in key for key in tensors if not key.startswith("phrases-2l.0@"))
    assert set(recipes.small_quality(tensors)) == set(weights.manifest()["small"]["quality"])


def test_what_is_measured(monkeypatch):
    """The losses by hand, and the scores on rows whose words are chance: nothing is left of them in the training."""
    model = load("phrases-2l", seed=1)
    measured = recipes.small_measured(model.requires_grad_(), "phrases-2l")
    assert not any(value.requires_grad for value in measured.values())
    rows = recipes.small_rows("phrases-2l", -1, 0, rows=200)
    with torch.no_grad():
        logits = model(rows)
    expected = [F.cross_entropy(logits[:, i], rows[:, i + 1]).item() for i in range(47)]
    assert measured["losses"].tolist() == pytest.approx(expected, abs=1e-4)
    assert measured["previous"].shape == measured["induction"].shape == (2, 4)


def test_quality_takes_the_worst_seed():
    tensors = {}
    for name in pretrained.SMALL:
        layers = small_config(name).n_layers
        tensors[f"curves.{name}.losses"] = torch.full((3, 2, 47), 9.0)
        tensors[f"curves.{name}.losses"][:, -1, -6:] = torch.tensor([1.0, 2.0, 3.0])[:, None] + torch.arange(6)
        for key in ("previous", "induction"):
            tensors[f"curves.{name}.{key}"] = torch.zeros(3, 2, layers, 4)
            tensors[f"curves.{name}.{key}"][:, 0] = 1.0  # earlier in training
            tensors[f"curves.{name}.{key}"][:, -1, 0, 2] = torch.tensor([0.25, 0.5, 0.75])
            tensors[f"curves.{name}.{key}"][:, -1, 0, 3] = torch.tensor([0.5, 0.375, 0.0])
    late = {f"{name.replace('-', '_')}_late_loss_highest": 5.5 for name in pretrained.SMALL}
    assert recipes.small_quality(tensors) == late | {
        "phrases_2l_previous_lowest": 0.5,
        "phrases_2l_induction_lowest": 0.5,
        "phrases_1l_induction_highest": 0.75,
        "distances_2l_induction_highest": 0.75,
    }


# What is shipped


@pytest.fixture(scope="module")
def shipped():
    return weights.load("small")


def test_the_quality_is_as_stated(shipped):
    assert recipes.RECIPES["small"].measure is recipes.small_quality
    assert recipes.small_quality(shipped) == pytest.approx(weights.manifest()["small"]["quality"], abs=0.002)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", pretrained.SMALL)
def test_the_models_are_those_of_the_curves(shipped, name, seed):
    measured = recipes.small_measured(load(name, seed=seed), name)
    for key, value in measured.items():
        last = shipped[f"curves.{name}.{key}"][seed, -1]
        assert (value - last).abs().max() < 0.01, key
    best_previous, best_induction = measured["previous"].max(), measured["induction"].max()
    late = measured["losses"][-6:].mean()
    if name == "phrases-2l":
        assert best_previous > 0.7
        assert measured["previous"].argmax() < 4  # in layer 0
        assert best_induction > 0.7
        assert measured["induction"].argmax() >= 4  # and in layer 1
        assert late < 1.5
    elif name == "phrases-1l":
        assert best_induction < 0.1
        assert late > 2.5
    else:
        assert best_induction < 0.2  # it predicts nearly all, and without induction heads
        assert late < 0.2


@pytest.mark.parametrize("step", [0, 120, 320])
def test_the_models_on_the_way_are_those_of_the_curves(shipped, step):
    measured = recipes.small_measured(load("phrases-2l", step=step), "phrases-2l")
    for key, value in measured.items():
        then = shipped[f"curves.phrases-2l.{key}"][0, step // recipes.CURVE_EVERY]
        assert (value - then).abs().max() < 0.01, key


def test_the_curves_are_whole(shipped):
    n = recipes.SMALL_STEPS // recipes.CURVE_EVERY + 1
    for name in pretrained.SMALL:
        assert shipped[f"curves.{name}.losses"].shape == (3, n, 47)
        assert shipped[f"curves.{name}.losses"][:, 0].mean().item() == pytest.approx(3.89, abs=0.05)
    induction, previous = (
        shipped[f"curves.phrases-2l.{key}"].flatten(2).max(dim=2).values for key in ("induction", "previous")
    )
    assert induction[:, 4].max() < 0.1  # at step 40 there is nothing yet
    for curve in (induction, previous):
        for row in curve:
            jump = (row > 0.5).nonzero()[0].item() * recipes.CURVE_EVERY
            assert 80 <= jump <= 320
            assert (row[jump // recipes.CURVE_EVERY + 5 :] > 0.5).all()  # and it stays
