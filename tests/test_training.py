"""The training loop and the shipped course models: seeded, resumable, and as good as the manifest says."""

import random

import pytest
import torch

from interp_edu import tinyworld, training, weights
from interp_edu.pretrained import load
from interp_edu.transformer import Config, Transformer

TINY = Config(n_layers=1, d_model=16, n_ctx=12, d_head=8, n_heads=2, d_vocab=20, d_mlp=16)


def tiny():
    return Transformer(TINY, torch.Generator().manual_seed(0))


def draw(step):
    """Rows that count upwards from a random start: easy to learn."""
    start = torch.randint(20, (16, 1), generator=torch.Generator().manual_seed(step))
    return (start + torch.arange(12)) % 20


def test_it_learns_and_is_seeded():
    first, again = (training.train_language_model(tiny(), draw, steps=150, lr=1e-2) for _ in range(2))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    t = draw(10_000)
    assert (first(t)[:, 2:-1].argmax(-1) == t[:, 3:]).float().mean() > 0.95


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path):
    state, whole = tmp_path / "state", training.train_language_model(tiny(), draw, steps=30)

    def breaks(step):
        if step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train_language_model(tiny(), draw, steps=30, state=state, save_every=5, on_step=breaks)
    assert state.exists()
    steps = []
    resumed = training.train_language_model(tiny(), draw, steps=30, state=state, save_every=5, on_step=steps.append)
    assert steps[0] == 15
    assert not state.exists()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_go_on_is_refused(tmp_path):
    state = tmp_path / "state"
    torch.save({"this": "another"}, state)
    with pytest.raises(ValueError, match="delete it to start anew"):
        training.train_language_model(tiny(), draw, steps=3, state=state)
    broken = tiny()
    broken.embed.W_E.data[3] = float("nan")
    with pytest.raises(ValueError, match="the loss of step 0 is nan"):
        training.train_language_model(broken, draw, steps=3)


def test_rows_before_and_after_the_corpus_fades_in(monkeypatch, tmp_path):
    rows = []
    monkeypatch.setattr(
        training, "train_language_model", lambda model, draw, **_: rows.extend(map(draw, (0, 600, 4000))) or model
    )
    training.course_model(0, tmp_path / "state")
    short, fading, corpus = rows
    assert short.shape == (80, 25)
    assert fading.shape == corpus.shape == (32, tinyworld.N_CTX)
    again = []
    monkeypatch.setattr(training, "train_language_model", lambda model, draw, **_: again.append(draw(4000)) or model)
    training.course_model(0, tmp_path / "state")
    assert torch.equal(again[0], corpus)  # a step's data depend on nothing but seed and step
    training.course_model(1, tmp_path / "state")
    assert not torch.equal(again[1], corpus)


@pytest.mark.parametrize("name", ["tinyworld", "tinyworld_1", "tinyworld_2"])
def test_the_course_models_are_as_good_as_stated(name):
    stated = weights.manifest()[name]["quality"]
    measured = training.course_quality(weights.load(name))
    assert measured == pytest.approx(stated, abs=0.005)
    assert measured["indirect_object_accuracy"] >= 0.99
    assert measured["logit_difference"] >= 3
    assert measured["facts_top1"] >= 0.98
    assert measured["repeats_first_half_loss"] > 5
    assert measured["repeats_second_half_loss"] < 0.3
    assert weights.manifest()[name]["cpu_seconds"] < 15 * 60


def test_load_gives_the_course_models():
    models = [load("tinyworld", seed=seed) for seed in range(3)]
    assert not any(p.requires_grad for model in models for p in model.parameters())
    sentence = tinyworld.indirect_object(random.Random(3), held_out=True)
    for model in models:
        best = model(model.tokenizer.encode(sentence.prompt()))[0, -1].argmax()
        assert model.tokenizer.vocab[best] == sentence.answer
    assert not torch.equal(models[0].embed.W_E, models[1].embed.W_E)


def test_progress(capsys):
    show = training.progress("three", 3)
    for step in range(3):
        show(step)
    assert "three: 100%" in capsys.readouterr().err
