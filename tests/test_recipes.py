"""Chapter 6's and chapter 10's models: their data, their training in small, and that the shipped ones are what they are said to be."""

import itertools
import random
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from interp_edu import pretrained, recipes, tinyworld, weights
from interp_edu.hooks import hooked
from interp_edu.pretrained import ModelError, load, small_config
from interp_edu.tinyworld import FACTS, TOKENIZER, Fact
from interp_edu.training import train_language_model
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


# Chapter 10's models

PEOPLE = {fact.subject for fact in FACTS if fact.relation == "home"}
FORMS = [  # relation, number, the words around subject and aside, the aside in full and who it is about
    (relation, n, re.compile(template.replace("{X}", r"(\w+ \w+)( , .*?(\w+ \w+)(?: well)? ,)?") + r" (\w+)"))
    for relation, templates in tinyworld.PARAPHRASES.items()
    for n, template in enumerate(templates)
]


def sentences(rows):
    """What is in some rows: register entries as facts, and told facts as (fact, number, aside, who it is about)."""
    register, told = [], []
    for row in rows.tolist():
        text = " ".join(TOKENIZER.vocab[token] for token in row[1:])
        for sentence in text.split(" . ")[:-1]:  # the last one may be cut off
            found = [(relation, n, match) for relation, n, form in FORMS if (match := form.fullmatch(sentence))]
            if not found:
                first, last, answer = sentence.split()
                register.append(((first, last), answer))
                continue
            [(relation, n, match)] = found
            subject, aside, other, answer = match.groups()
            told.append((Fact(tuple(subject.split()), relation, answer), n, aside, other and tuple(other.split())))
    return register, told


@pytest.fixture(scope="module")
def read():
    return {name: sentences(recipes.recall_rows(name, 0, 7, rows=400)) for name in pretrained.RECALL}


@pytest.mark.parametrize("name", pretrained.RECALL)
def test_rows_of_facts(name):
    rows = recipes.recall_rows(name, 0, 5)
    assert rows.shape == (32, 64)
    assert rows.dtype == torch.int64
    assert (rows[:, 0] == TOKENIZER.bos).all()
    assert (rows[:, 1:] != TOKENIZER.bos).all()
    assert len(rows.unique(dim=0)) == 32
    random.seed(3)  # nothing but the name, the seed and the step says what they are
    assert torch.equal(rows, recipes.recall_rows(name, 0, 5))
    assert torch.equal(recipes.recall_rows(name, 0, 5, rows=3), rows[:3])
    other = pretrained.RECALL[name == "recall"]
    for rest in ((name, 0, 6), (name, 1, 5), (other, 0, 5)):
        assert not torch.equal(rows, recipes.recall_rows(*rest))


def test_only_one_of_the_two_reads_the_register(read):
    register, told = read["recall"]
    assert len(register) / (len(register) + len(told)) == pytest.approx(0.5, abs=0.05)
    answers = {}
    for fact in FACTS:
        answers.setdefault(fact.subject, set()).add(fact.answer)
    assert all(answer in answers[subject] for subject, answer in register)
    assert {subject for subject, _ in register} == set(answers)
    relation_of = {(fact.subject, fact.answer): fact.relation for fact in FACTS}
    share = Counter(relation_of[entry] for entry in register)
    assert {relation: n / len(register) for relation, n in share.items()} == pytest.approx(
        {"home": 0.25, "job": 0.25, "instrument": 0.25, "city": 0.125, "material": 0.125}, abs=0.04
    )
    register, told = read["recall-plain"]
    assert register == []
    assert len(told) > 1500


@pytest.mark.parametrize("name", pretrained.RECALL)
def test_facts_are_told_truly_and_never_as_held_out(read, name):
    _, told = read[name]
    assert all(fact in FACTS for fact, *_ in told)
    assert not any(tinyworld.held_out_paraphrase(fact, n) for fact, n, *_ in told)
    assert {(fact.relation, n) for fact, n, *_ in told} == {(relation, n) for relation, n, _ in FORMS}
    assert max(Counter((fact.relation, n) for fact, n, *_ in told).values()) < 0.08 * len(told)


@pytest.mark.parametrize("name", pretrained.RECALL)
def test_asides_are_about_somebody_else(read, name):
    _, told = read[name]
    of_people = [(fact, aside, other) for fact, _, aside, other in told if fact.subject in PEOPLE]
    asides = [(fact, aside, other) for fact, aside, other in of_people if aside]
    assert len(asides) / len(of_people) == pytest.approx(0.6, abs=0.05)
    assert not any(aside for fact, _, aside, _ in told if fact.subject not in PEOPLE)
    known = {aside.replace("{Y}", " ".join(person)) for aside in tinyworld.ASIDES for person in PEOPLE}
    assert all(aside.strip() in known for _, aside, _ in asides)
    assert {other for *_, other in asides} <= PEOPLE
    assert not any(other == fact.subject for fact, _, other in asides)
    shared = Counter((other[0] == fact.subject[0], other[1] == fact.subject[1]) for fact, _, other in asides)
    assert shared[False, False] / len(asides) == pytest.approx(0.5, abs=0.05)
    assert shared[True, False] > 0.1 * len(asides)
    assert shared[False, True] > 0.1 * len(asides)


def test_the_recall_recipe_writes_what_load_reads(monkeypatch):
    """One step, instead of 2,000, from the usual start."""
    monkeypatch.setattr(recipes, "RECALL_STEPS", 1)
    monkeypatch.setattr(pretrained, "COURSE_SEEDS", (1,))
    tensors = recipes.RECIPES["recall"].make(weights.FOLDER / "recall.unfinished")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert not any(value.requires_grad for value in tensors.values())
    monkeypatch.setattr(weights, "load", lambda name: {key: value.float() for key, value in tensors.items()})
    for name in pretrained.RECALL:
        expected = Transformer(tinyworld.CONFIG, torch.Generator().manual_seed(1))
        start = {key: value.clone() for key, value in expected.state_dict().items()}
        train_language_model(expected, lambda step, name=name: recipes.recall_rows(name, 1, step), steps=1)
        model = load(name, seed=1)
        assert equal(model.state_dict(), {key: value.half().float() for key, value in expected.state_dict().items()})
        assert not equal(model.state_dict(), {key: value.half().float() for key, value in start.items()})
    assert len(tensors) == 2 * len(start)


def course(seed):
    return dict(weights.load(f"tinyworld{f'_{seed}' if seed else ''}"))


def by_hand(tensors):
    """The shares of homes that a model knows, with an aside, and that go with a stranger's MLP 0 at the last name."""
    model = Transformer(tinyworld.CONFIG)
    model.load_state_dict(tensors)
    model.requires_grad_(False)
    facts = [fact for fact in FACTS if fact.relation == "home" and fact.subject != ("Otto", "Marsh")]
    random.Random(0).shuffle(facts)
    rows = TOKENIZER.encode([f"{' '.join(fact.subject)}, unlike Otto Marsh, lives in" for fact in facts])
    outputs = []
    with hooked(model, [("blocks.0.hook_mlp_out", lambda x, hook: outputs.append(x[:, 2]))]):
        right = model(rows)[:, -1].argmax(dim=1).tolist()

    def put(x, hook):
        x[:, 2] = outputs[0].roll(-1, dims=0)  # the next fact's

    with hooked(model, [("blocks.0.hook_mlp_out", put)]):
        says = model(rows)[:, -1].argmax(dim=1).tolist()
    knows, goes = [], []
    for i, fact in enumerate(facts):
        donor = facts[(i + 1) % len(facts)]
        if fact.answer != donor.answer and all(a != b for a, b in zip(fact.subject, donor.subject, strict=True)):
            knows.append(TOKENIZER.vocab[right[i]] == fact.answer)
            goes.append(TOKENIZER.vocab[says[i]] == donor.answer)
    assert 60 < len(goes) < len(facts)
    return sum(knows) / len(knows), sum(goes) / len(goes)


def test_quality_of_recall_takes_the_worst_seed():
    """On the course models, one of them in other places, and one damaged."""
    models = [course(seed) for seed in SEEDS]
    models[1]["blocks.3.attn.W_O"] *= 0.5
    found = [by_hand(model) for model in models]
    assert 0 < found[1][0] < found[0][0]
    assert len({moved for _, moved in found}) > 1
    order = {"recall": (2, 0, 1), "recall-plain": (1, 1, 0)}
    tensors = {
        f"{name}.{seed}.{key}": value.half()
        for name, places in order.items()
        for seed, place in enumerate(places)
        for key, value in models[place].items()
    }
    right, moved = ({name: [found[place][i] for place in places] for name, places in order.items()} for i in range(2))
    assert recipes.recall_quality(tensors) == pytest.approx(
        {
            "recall_right_lowest": min(right["recall"]),
            "recall_moved_lowest": min(moved["recall"]),
            "recall_moved_highest": max(moved["recall"]),
            "recall_plain_right_lowest": min(right["recall-plain"]),
            "recall_plain_moved_lowest": min(moved["recall-plain"]),
            "recall_plain_moved_highest": max(moved["recall-plain"]),
        }
    )


# What is shipped of chapter 10


@pytest.fixture(scope="module")
def recall():
    return weights.load("recall")


def test_the_quality_of_recall_is_as_stated(recall):
    assert recipes.RECIPES["recall"].measure is recipes.recall_quality
    stated = weights.manifest()["recall"]["quality"]
    assert recipes.recall_quality(recall) == pytest.approx(stated, abs=0.002)
    assert stated["recall_right_lowest"] > 0.9
    assert stated["recall_plain_right_lowest"] > 0.9
    assert stated["recall_moved_lowest"] > stated["recall_plain_moved_highest"] + 0.2  # what the chapter is about


@pytest.mark.parametrize(("name", "seed"), [*itertools.product(pretrained.RECALL, SEEDS)])
def test_the_recall_models(recall, name, seed):
    model = load(name, seed=seed)
    assert model.cfg == tinyworld.CONFIG
    assert model.tokenizer is TOKENIZER
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert equal(
        model.state_dict(),
        {key.removeprefix(f"{name}.{seed}."): x for key, x in recall.items() if re.match(rf"{name}\.{seed}\.", key)},
    )
    right, moved = by_hand(model.state_dict())
    stated = weights.manifest()["recall"]["quality"]
    key = name.replace("-", "_")
    assert right >= stated[f"{key}_right_lowest"] - 0.002
    assert stated[f"{key}_moved_lowest"] - 0.002 <= moved <= stated[f"{key}_moved_highest"] + 0.002


def test_the_recall_models_are_six(recall):
    names = [f"{name}.{seed}" for name in pretrained.RECALL for seed in SEEDS]
    assert {".".join(key.split(".")[:2]) for key in recall} == set(names)
    assert len({recall[f"{name}.unembed.W_U"].sum().item() for name in names}) == 6
    assert torch.equal(load("recall").embed.W_E, load("recall", seed=0).embed.W_E)
    assert len(recall) == 6 * len(load("recall").state_dict())


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("recall", {"seed": 3}, "seeds 0, 1, 2, not 3"),
        ("recall-plain", {"seed": -1}, "seeds 0, 1, 2, not -1"),
        ("recall", {"step": 0}, "no steps of training were kept of 'recall', only of 'phrases-2l'"),
        ("recall_plain", {}, "no folder called 'recall_plain'; known by name are .*'recall', 'recall-plain'"),
    ],
    ids=str,
)
def test_recall_models_that_do_not_exist(name, settings, words):
    with pytest.raises(ModelError, match=words):
        load(name, **settings)
