"""What is true of a row, read again from its text; scores against counting; interventions and dashboards by hand."""

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F

from interp_edu import tinyworld
from interp_edu.features import (
    Group,
    Score,
    auroc,
    best_threshold,
    dashboards,
    f1_score,
    family,
    halves,
    labelled_rows,
    latents_of,
    linear_probes,
    losses,
    midranks,
    quality,
    replaced,
    score_probes,
    score_units,
    set_latent,
)
from interp_edu.hooks import hooked, run_with_cache
from interp_edu.logit_lens import word_effects
from interp_edu.sparse_autoencoders import SAE
from tests.test_sparse_autoencoders import KINDS, random_sae
from tests.test_transformer import SHAPE, random_model

N_CTX = tinyworld.N_CTX
SITE = "blocks.0.hook_resid_post"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


# What is true of each token: read again from the text ------------------------------------------------


def one_of(words):
    return f"(?:{'|'.join(map(re.escape, words))})"


NAME, PLACE, OBJECT = one_of(tinyworld.NAMES), one_of(tinyworld.PLACES), one_of(tinyworld.OBJECTS)
PERSON = f"{one_of(tinyworld.FIRST)} {one_of(tinyworld.LAST)}"
BUILDING = f"{one_of(tinyworld.ADJECTIVES)} {one_of(tinyworld.BUILDINGS)}"


def pattern(template, **slots):
    """A regular expression of a template, with a named group for each slot."""
    parts = re.split(r"\{(\w+)\}", template)
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [slots[name] for name in parts[1::2]]
    return "".join(parts)


LEAD_INS = f"(?:{one_of(tinyworld.LEAD_INS)} ){{0,2}}"
GIVING = [
    (opening, closing, re.compile(f"{LEAD_INS}{first} {second} (?P<answer>{NAME}|them) \\. ?"))
    for opening, closing in itertools.product(tinyworld.OPENINGS, tinyworld.CLOSINGS)
    for first in [pattern(opening, A=f"(?P<A>{NAME})", B=f"(?P<B>{NAME})", place=f"(?P<place>{PLACE})")]
    for second in [pattern(closing, S=f"(?P<S>{NAME})", object=OBJECT)]
]
ASIDE = f"(?: , a friend of {PERSON} ,| , who knows {PERSON} well ,| , unlike {PERSON} ,)?"
FACTS = [
    (relation, re.compile(f"{told} (?P<answer>{one_of(tinyworld.ANSWERS[relation])}) \\. ?"))
    for relation, templates in tinyworld.PARAPHRASES.items()
    for template in templates
    for who in [BUILDING if relation in ("city", "material") else PERSON]
    for told in [pattern(template, X=f"(?P<subject>{who}){ASIDE}")]
]
FILLER = re.compile(" ".join(map(one_of, tinyworld.FILLER)) + " ?")


def parsed(text, start):
    """The sentence that starts there: its kind, its match, and what its template was."""
    for opening, closing, expression in GIVING:
        if match := expression.match(text, start):
            return ("third" if match["answer"] == "them" else "indirect object"), match, (opening, closing)
    for relation, expression in FACTS:
        if match := expression.match(text, start):
            return "fact", match, relation
    return "filler", FILLER.match(text, start), None


def truth_of(words):
    """{group: {position: value}} of a row, and up to where its sentences are whole."""
    found = {name: {} for name in ("kind of sentence", "role")}
    found["word"] = dict(enumerate(words[1:], 1))
    found["position"] = {i: f"{8 * (i // 8)} to {8 * (i // 8) + 7}" for i in range(1, N_CTX)}
    periods = [p for p in range(7, 32) if all(words[i] == words[i + p] for i in range(1, N_CTX - p))]
    if periods:
        found["kind of sentence"] = dict.fromkeys(range(1, N_CTX), "repeat")
        return found, N_CTX
    text, start = " ".join(words[1:]), 0

    def at(character):
        return 1 + text.count(" ", 0, character)

    while True:
        kind, match, told = parsed(text, start)
        if match is None or (not match[0].endswith(" ") and match.end() < len(text)):
            return found, at(start)
        first, end = at(start), at(match.end()) if match[0].endswith(" ") else N_CTX
        found["kind of sentence"] |= dict.fromkeys(range(first, end), kind)
        if kind == "fact":
            last, before = at(match.end("subject")), at(match.start("answer")) - 1
            found["role"] |= {last: "subject", before: "before answer"}
            at_end = {"relation": told, "answer of a fact": match["answer"]}
            found.setdefault("subject of a fact", {})[last] = match["subject"]
        elif kind == "indirect object":
            before = at(match.start("answer")) - 1
            s1, io = ("A", "B") if match["S"] == match["A"] else ("B", "A")
            assert (match["S"], match["answer"]) == (match[s1], match[io])
            found["role"] |= {at(match.start(io)): "IO", at(match.start(s1)): "S1", at(match.start(s1)) + 1: "after S1"}
            found["role"] |= {at(match.start("S")): "S2", before: "before IO"}
            at_end = {"indirect object": match["answer"], "giver": match["S"], "place told": match["place"]}
            at_end |= {"opening": told[0], "closing": told[1]}
        else:
            at_end = {}
        for group, value in at_end.items():
            found.setdefault(group, {})[before] = value
        start = match.end()
        if start == len(text):
            return found, N_CTX


def in_words(tokens):
    return [[tinyworld.TOKENIZER.vocab[i] for i in row] for row in tokens.tolist()]


def told(group):
    """{token: the names that hold there}."""
    return {
        token: [name for name, holds in zip(group.names, column, strict=True) if holds]
        for token, column in zip(group.where.tolist(), group.truth.T.tolist(), strict=True)
    }


@pytest.fixture(scope="module")
def everything():
    """Rows, and all that is true of them: no variable is left out."""
    tokens, groups = labelled_rows(120, seed=3, most=10**9, least=0)
    return tokens, {group.what: group for group in groups}


def test_rows_are_rows_of_the_corpus(everything):
    words = in_words(everything[0])
    assert everything[0].shape == (120, N_CTX)
    whole, kinds = 0, []
    for row in words:
        assert row[0] == tinyworld.BOS
        assert tinyworld.BOS not in row[1:]
        found, until = truth_of(row)
        assert until > N_CTX - 45  # all is parsed, but perhaps for one sentence that is cut off
        whole += until
        kinds += found["kind of sentence"].values()
    assert whole > 0.8 * 120 * N_CTX
    assert 0.05 < kinds.count("repeat") / len(kinds) < 0.3
    assert {"indirect object", "third", "fact", "repeat", "filler"} == set(kinds)


def test_truth_of_every_group_is_what_the_text_says(everything):
    tokens, groups = everything
    expected, until = {}, []
    for row, words in enumerate(in_words(tokens)):
        found, end = truth_of(words)
        until.append(end)
        for group, values in found.items():
            into = expected.setdefault(group, {})
            into.update(
                {row * N_CTX + i: value for i, value in values.items() if i < end or group in ("word", "position")}
            )
    assert expected.keys() == groups.keys()
    for what, group in groups.items():
        found = told(group)
        assert len(found) == len(group.where)  # no token twice
        values = expected[what]
        whole = {t for t in found if t % N_CTX < until[t // N_CTX]} if what not in ("word", "position") else set(found)
        if what == "role":
            everywhere = {r * N_CTX + i for r in range(120) for i in range(1, until[r])}
            assert whole == everywhere  # asked everywhere,
            assert {t for t in whole if found[t]} == set(values)  # and mostly there is none
        else:
            assert whole == set(values), what
        for token, value in values.items():
            assert found[token] == [value], (what, divmod(token, N_CTX))


def test_where_an_answer_is_asked_it_comes_next(everything):
    """Also in sentences that are cut off later."""
    tokens, groups = everything
    following = torch.cat([tokens[:, 1:], torch.full((120, 1), -1)], dim=1).flatten().tolist()
    for what in ("indirect object", "answer of a fact"):
        asked = [(following[token], names) for token, names in told(groups[what]).items() if following[token] >= 0]
        assert len(asked) > 30
        for token, names in asked:
            assert [tinyworld.TOKENIZER.vocab[token]] == names
    words = in_words(tokens)
    for token, names in told(groups["subject of a fact"]).items():
        row, pos = divmod(token, N_CTX)
        assert [" ".join(words[row][pos - 1 : pos + 1])] == names


def test_the_place_told_is_not_the_market_day_of_a_lead_in():
    """`It was market day in the town .` tells no place, though a market is one."""
    tokens, groups = labelled_rows(200, seed=1, most=10**9, least=0)
    group, words, seen = next(g for g in groups if g.what == "place told"), in_words(tokens), 0
    for token, names in told(group).items():
        row, pos = divmod(token, N_CTX)
        before = words[row][:pos]
        assert names == [[word for word in before if word in tinyworld.PLACES][-1]]
        seen += "market day" in " ".join(before[-35:]) and names != ["market"]
    assert seen > 10


def test_nothing_is_asked_outside_of_a_row(everything):
    tokens, groups = everything
    for group in groups.values():
        assert group.where.dtype == torch.int64
        assert group.truth.shape == (len(group.names), len(group.where))
        assert group.where.min() >= 0
        assert group.where.max() < tokens.numel()
        assert (group.where % N_CTX > 0).all()  # nothing is true of the token that begins a row
        assert (group.where.diff() > 0).all()
        assert sorted(set(group.names)) == list(group.names)
        assert (group.truth.sum(dim=0) <= 1).all()
    assert set(groups["word"].where.tolist()) == {r * N_CTX + i for r in range(120) for i in range(1, N_CTX)}
    ends = groups["indirect object"].where % N_CTX
    assert (ends == N_CTX - 1).any()  # the answer is just cut off


@pytest.mark.parametrize(("n", "least"), [(80, 10), (81, 3), (15, 10)])
def test_variables_with_few_cases_are_left_out(n, least):
    tokens, groups = labelled_rows(n, seed=2, least=least)
    same, every = labelled_rows(n, seed=2, least=0)
    assert torch.equal(tokens, same)
    found = {group.what: group for group in groups}
    for group in every:
        first = group.where < n // 2 * N_CTX
        enough = [
            name
            for name, truth in zip(group.names, group.truth, strict=True)
            if min(truth[first].sum(), truth[~first].sum()) >= least
        ]
        assert (group.what in found) == bool(enough)
        if enough:
            kept = found[group.what]
            assert list(kept.names) == enough
            assert torch.equal(kept.where, group.where)  # asked at the same tokens, also where none holds any more
            assert torch.equal(kept.truth, group.truth[[group.names.index(name) for name in enough]])
    assert any(len(group.names) < len(other.names) for group in groups for other in every if other.what == group.what)


def test_few_rows_still_give_groups_that_can_be_scored():
    for n in (2, 10, 30):
        tokens, groups = labelled_rows(n)
        for group in groups:
            score_units(normal(tokens.numel(), 3), group, n)
            score_probes(normal(tokens.numel(), 3), group, n)


@pytest.mark.parametrize("most", [500, 200])
def test_large_groups_are_thinned_evenly(most, everything):
    tokens, groups = labelled_rows(120, seed=3, most=most, least=0)
    sizes = [len(group.where) for group in everything[1].values()]
    assert any(size < most for size in sizes)
    assert any(size > 3 * most for size in sizes)
    assert most > 200 or any(most < size < 2 * most for size in sizes)
    assert torch.equal(tokens, everything[0])
    for group in groups:
        whole = everything[1][group.what]
        if len(whole.where) <= most:
            assert torch.equal(group.where, whole.where)
            continue
        assert len(group.where) == most
        index = torch.searchsorted(whole.where, group.where)
        assert torch.equal(whole.where[index], group.where)
        assert (index[0].item(), index[-1].item()) == (0, len(whole.where) - 1)
        assert index.diff().max() - index.diff().min() <= 1
        every = told(whole)
        for token, names in told(group).items():
            assert names == every[token]


def test_rows_follow_from_the_seed():
    tokens, groups = labelled_rows(20, 5)
    again, same = labelled_rows(20, 5)
    assert torch.equal(tokens, again)
    for a, b in zip(groups, same, strict=True):
        assert (a.what, a.names) == (b.what, b.names)
        assert torch.equal(a.where, b.where)
        assert torch.equal(a.truth, b.truth)
    assert not torch.equal(tokens, labelled_rows(20, 6)[0])
    assert torch.equal(labelled_rows(12, 5)[0], tokens[:12])
    assert torch.equal(labelled_rows(20)[0], labelled_rows(20, 0)[0])


# Scores against counting -----------------------------------------------------------------------------


def numbers(n, m, seed=0):
    """With many ties, zeros of both signs, and a column of its own for numbers without ties."""
    x = torch.randint(-2, 4, (n, m), generator=generator(seed)).float()
    x[0] = -0.0
    x[:, -1] = normal(n, seed=seed)
    return x


def truths(v, n, seed=0, share=0.4):
    truth = torch.rand(v, n, generator=generator(seed + 50)) < share
    truth[:, 0], truth[:, 1] = True, False
    return truth


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_midranks_by_counting(dtype):
    x = numbers(23, 4).to(dtype)
    expected = [
        [sum(b < a for b in column) + (sum(b == a for b in column) + 1) / 2 for a in column] for column in x.T.tolist()
    ]
    assert torch.equal(midranks(x), torch.tensor(expected, dtype=torch.float64).T)
    assert midranks(torch.tensor([[3.0], [1.0], [3.0], [0.0]])).flatten().tolist() == [3.5, 2.0, 3.5, 1.0]
    assert midranks(torch.ones(4, 1)).flatten().tolist() == [2.5] * 4


def auroc_by_counting(column, truth):
    ones, others = ([a for a, t in zip(column, truth, strict=True) if t == side] for side in (True, False))
    return sum((a > b) + (a == b) / 2 for a in ones for b in others) / (len(ones) * len(others))


def test_auroc_by_counting_pairs():
    x, truth = numbers(31, 5), truths(3, 31)
    found = auroc(x, truth)
    assert found.shape == (3, 5)
    for v, m in itertools.product(range(3), range(5)):
        assert found[v, m].item() == pytest.approx(auroc_by_counting(x[:, m].tolist(), truth[v].tolist()), abs=1e-12)
    assert torch.allclose(auroc(-x, truth), 1 - found)
    assert torch.allclose(auroc(x.exp(), truth), found)  # only the order counts
    assert torch.allclose(auroc(x, ~truth), 1 - found)


def test_auroc_at_its_ends():
    truth = torch.tensor([[False, False, True, True]])
    x = torch.tensor([[0.0, 9.0, 1.0, 0.0], [0.0, 8.0, 1.0, 0.0], [0.1, 7.0, 1.0, 5.0], [3.0, 1.0, 1.0, 0.0]])
    assert auroc(x, truth).tolist() == [[1.0, 0.0, 0.5, 0.75]]
    constant = torch.tensor([[True] * 4, [False] * 4])
    assert auroc(x, constant).isnan().all()


def f1_by_counting(says, truth):
    hits = sum(a and b for a, b in zip(says, truth, strict=True))
    return 2 * hits / (sum(says) + sum(truth)) if hits else 0.0


@pytest.mark.parametrize("seed", range(8))
def test_best_threshold_against_all_thresholds(seed):
    n, v = 17, 6
    x, truth = numbers(n, v, seed), truths(v, n, seed, share=0.1 + 0.1 * seed)
    truth[1], truth[2] = False, True  # nothing to find, and everything
    found = best_threshold(x, truth)
    assert found.shape == (v,)
    for i in range(v):
        column = x[:, i].tolist()
        scores = {
            t: f1_by_counting([a >= t for a in column], truth[i].tolist()) for t in {*column, math.inf, -math.inf}
        }
        assert found[i].item() in column
        assert scores[found[i].item()] == pytest.approx(max(scores.values()), abs=1e-6)
    assert (x[:, 2] >= found[2]).all()


def test_f1_by_hand():
    says = torch.tensor([[1, 0, 0, 1, 0], [1, 0, 1, 1, 0], [0, 0, 1, 1, 0], [1, 0, 1, 1, 1]]).bool()
    truth = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    # 2 hits of 3 said and 3 true; never said; 0 hits of 3 and 1; all; said once, never true
    assert f1_score(says, truth).tolist() == pytest.approx([2 / 3, 0, 0, 1, 0])
    precision, recall = 1 / 4, 1 / 2
    one = f1_score(torch.ones(4, 1).bool(), torch.tensor([[1, 0, 0, 0]]).bool()).item()
    assert one == pytest.approx(2 * precision * 1 / (precision + 1))
    two = f1_score(torch.tensor([[1], [1], [1], [1], [0]]).bool(), torch.tensor([[1, 0, 0, 0, 1]]).bool()).item()
    assert two == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1_score(torch.zeros(3, 1).bool(), torch.zeros(1, 3).bool()).tolist() == [0.0]


def test_probes_are_least_squares():
    x, truth = normal(200, 5) @ normal(5, 5, seed=1) + torch.tensor([3.0, 0.0, -1.0, 0.0, 2.0]), truths(4, 200)
    columns = torch.cat([x, torch.ones(200, 1)], dim=1).double()
    expected = torch.linalg.lstsq(columns, truth.T.double()).solution
    directions, bias = linear_probes(x, truth, ridge=0.0)
    assert torch.allclose(directions.double(), expected[:5], atol=1e-4)
    assert torch.allclose(bias.double(), expected[5], atol=1e-3)
    close, _ = linear_probes(x, truth)
    assert torch.allclose(close, directions, atol=1e-2)  # a small ridge changes little


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_probes_with_a_ridge_minimise_what_they_should(ridge):
    """The mean squared error + ridge * the mean variance * |w|^2, the bias being free: by gradients, in float64."""
    x, truth = normal(60, 4) * torch.tensor([1.0, 3.0, 0.5, 1.0]) + 2, truths(3, 60)
    before = x.clone()
    directions, bias = linear_probes(x, truth, ridge)
    assert torch.equal(x, before)
    w, b = directions.double().requires_grad_(), bias.double().requires_grad_()
    penalty = ridge * x.double().var(dim=0, correction=0).mean() * w.square().sum()
    with torch.enable_grad():
        ((x.double() @ w + b - truth.T.double()).square().mean(dim=0).sum() + penalty).backward()
    assert w.grad.abs().max() < 1e-5
    assert b.grad.abs().max() < 1e-5


def test_probes_of_fewer_samples_than_dimensions():
    directions, bias = linear_probes(normal(6, 20), truths(2, 6))
    assert directions.isfinite().all()
    assert ((normal(6, 20) @ directions + bias > 0.5) == truths(2, 6).T).all()


# Scores of planted units -----------------------------------------------------------------------------


def planted(n_rows=21, v=3, seed=0):
    """A group that is asked at some of the tokens, and its variables at all of the tokens."""
    where = (torch.rand(n_rows * N_CTX, generator=generator(seed)) < 0.4).nonzero().flatten()
    truth = torch.rand(v, len(where), generator=generator(seed + 1)) < 0.3
    return Group("planted", tuple(f"v{i}" for i in range(v)), where, truth), n_rows * N_CTX


def with_truth(x, group, unit, variable, rows=None, noise=0.05):
    """Sets a unit to a variable's truth, where it is asked and in these halves of it."""
    rows = torch.ones(len(group.where), dtype=torch.bool) if rows is None else rows
    values = group.truth[variable].float() + noise * normal(len(group.where), seed=unit + 70)
    x[group.where[rows], unit] = values[rows]


def test_halves_split_by_rows():
    group, _ = planted()
    for n_rows in (21, 20):
        first, second = halves(group, n_rows)
        assert torch.equal(first, torch.tensor([token // N_CTX < 10 for token in group.where.tolist()]))
        assert torch.equal(second, ~first)


def test_a_planted_unit_is_found_and_judged_where_it_was_not_chosen():
    group, n = planted()
    x = normal(n, 12, seed=9)
    first, second = halves(group, 21)
    with_truth(x, group, 7, 0)
    with_truth(x, group, 2, 1, first)  # right in the first half, random in the second
    with_truth(x, group, 4, 1, second)  # the other way round
    score = score_units(x, group, 21)
    assert score.group is group
    assert score.unit[:2].tolist() == [7, 2]
    assert score.auroc[0] > 0.99
    assert score.f1[0] > 0.95
    assert abs(score.auroc[1] - 0.5) < 0.1
    assert score.f1[1] < 0.6
    assert score.monosemantic == pytest.approx(1 / 3)
    for v in range(3):
        a, b = ([x[group.where[half], u].tolist() for u in range(12)] for half in (first, second))
        truth_a, truth_b = (group.truth[v, half].tolist() for half in (first, second))
        by_unit = [auroc_by_counting(column, truth_a) for column in a]
        unit = by_unit.index(max(by_unit))
        assert score.unit[v] == unit
        assert score.auroc[v].item() == pytest.approx(auroc_by_counting(b[unit], truth_b), abs=1e-9)
        scores = {t: f1_by_counting([y >= t for y in a[unit]], truth_a) for t in a[unit]}
        threshold = max(scores, key=scores.get)
        assert score.f1[v].item() == pytest.approx(f1_by_counting([y >= threshold for y in b[unit]], truth_b), abs=1e-6)


def test_a_threshold_is_not_adapted_to_the_second_half():
    group, n = planted(v=1)
    x, (first, second) = torch.zeros(n, 2), halves(group, 21)
    with_truth(x, group, 1, 0, first, noise=0.01)
    with_truth(x, group, 1, 0, second, noise=0.01)
    x[group.where[second], 1] *= 0.5
    score = score_units(x, group, 21)
    assert score.unit.tolist() == [1]
    assert score.auroc.item() == pytest.approx(1.0)
    assert score.f1.item() == 0.0


def test_a_number_at_the_threshold_says_yes():
    group, n = planted(v=1)
    x = torch.zeros(n, 2)
    with_truth(x, group, 1, 0, noise=0)
    score = score_units(x, group, 21)
    assert (score.unit.item(), score.auroc.item(), score.f1.item()) == (1, 1.0, 1.0)


def test_monosemantic_is_nine_tenths():
    group, f1 = planted(v=5)[0], torch.tensor([0.95, 0.91, 0.89, 0.6, 0.0])
    assert Score(group, torch.arange(5), torch.ones(5), f1).monosemantic == pytest.approx(2 / 5)


def test_only_the_groups_own_tokens_count():
    group, n = planted()
    x = normal(n, 4)
    elsewhere = torch.ones(n, dtype=torch.bool)
    elsewhere[group.where] = False
    changed = x.clone()
    changed[elsewhere] = 1e6 * normal(int(elsewhere.sum()), 4, seed=1)
    for score in (score_units, score_probes):
        a, b = score(x, group, 21), score(changed, group, 21)
        assert torch.equal(a.unit, b.unit)
        assert torch.equal(a.auroc, b.auroc)
        assert torch.equal(a.f1, b.f1)


def test_probes_of_planted_directions():
    group, n = planted()
    directions = normal(3, 8, seed=4)
    x = 0.1 * normal(n, 8)
    x[group.where] += group.truth.T.float() @ directions + 5
    score = score_probes(x, group, 21)
    assert (score.auroc > 0.999).all()
    assert (score.f1 > 0.98).all()
    assert score.unit.tolist() == [0, 1, 2]
    assert score.monosemantic == 1
    _, second = halves(group, 21)
    x[group.where[second]] -= 2 * (group.truth[:, second].T.float() @ directions)  # turned round where it is judged
    turned = score_probes(x, group, 21)
    assert (turned.auroc < 0.001).all()
    random = score_probes(normal(n, 8, seed=5), group, 21)
    assert (random.auroc - 0.5).abs().max() < 0.15


def test_latents_of_the_tokens_asked():
    sae, (a, n), (b, _) = random_sae(), planted(n_rows=3, seed=1), planted(n_rows=3, seed=5)
    x = normal(n, 5)
    f = latents_of(sae, x, [a, b])
    asked = sorted({*a.where.tolist(), *b.where.tolist()})
    assert torch.allclose(f[asked], sae.encode(x)[asked], atol=1e-6)
    assert len(asked) < n
    assert not f[[t for t in range(n) if t not in asked]].any()


# What a latent does ----------------------------------------------------------------------------------


def some_tokens(batch=4, length=9, seed=0):
    return torch.randint(SHAPE.d_vocab, (batch, length), generator=generator(seed))


def sae_of_model(**kind):
    return random_sae(SHAPE.d_model, 40, seed=3, **kind)


def at_site(model, tokens, hook=None, site=SITE):
    """The activation, after the hook."""
    with hooked(model, [(site, hook)] if hook else []):
        return run_with_cache(model, tokens, site)[1][site]


def test_losses_are_cross_entropy():
    model, tokens = random_model(), some_tokens()
    logits = model(tokens).double()
    by_hand = [
        -(logits[row, pos, tokens[row, pos + 1]] - logits[row, pos].exp().sum().log()).item()
        for row in range(4)
        for pos in range(8)
    ]
    assert losses(model, tokens) == pytest.approx(sum(by_hand) / 32, abs=1e-5)
    zero = replaced(torch.zeros(SHAPE.d_model), skip=0)
    with hooked(model, [(SITE, zero)]):
        logits = model(tokens)
    expected = F.cross_entropy(logits[:, :-1].reshape(32, -1), tokens[:, 1:].reshape(32)).item()
    assert losses(model, tokens, SITE, zero) == pytest.approx(expected, abs=1e-6)
    assert abs(expected - losses(model, tokens)) > 0.01
    assert not model.attached
    with pytest.raises(ValueError, match="no hook point"):
        losses(model, tokens, "blocks.9.hook_resid_post", zero)


@pytest.mark.parametrize("skip", [None, 0, 3])
def test_replaced(skip):
    model, tokens = random_model(), some_tokens()
    more, skipped = ({} if skip is None else {"skip": skip}), (1 if skip is None else skip)
    x, sae, vector = at_site(model, tokens), sae_of_model(), normal(SHAPE.d_model)
    for by, expected in ((sae, sae(x)), (lambda y: 2 * y, 2 * x), (vector, vector.expand_as(x))):
        found = at_site(model, tokens, replaced(by, **more))
        assert torch.equal(found[:, :skipped], x[:, :skipped])
        assert torch.allclose(found[:, skipped:], expected[:, skipped:], atol=1e-4)
    assert torch.equal(at_site(model, tokens), x)
    assert not model.attached


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [None, 0, 3])
def test_a_latent_is_set_and_the_error_is_kept(kind, skip):
    model, tokens, sae, latent = random_model(), some_tokens(), sae_of_model(**kind), 6
    more, skipped = ({} if skip is None else {"skip": skip}), (1 if skip is None else skip)
    x = at_site(model, tokens)
    f = sae.encode(x)
    latent = (f > 0).float().mean(dim=(0, 1)).sub(0.5).abs().argmin().item()  # on at some tokens, off at others
    assert 0 < (f[:, skipped:, latent] > 0).float().mean() < 1
    weights = normal(4, 9, seed=8)
    for value, new in (
        (0.0, torch.zeros(4, 9)),
        (3.5, torch.full((4, 9), 3.5)),
        (lambda a: 2 * a + 1, 2 * f[..., latent] + 1),
        (lambda a: a * weights, f[..., latent] * weights),
    ):
        found = at_site(model, tokens, set_latent(sae, latent, value, **more))
        changed = f.clone()
        changed[..., latent] = new
        error = x - sae.decode(f)
        expected = sae.decode(changed) + error
        assert torch.allclose(found[:, skipped:], expected[:, skipped:], atol=1e-4)
        assert torch.equal(found[:, :skipped], x[:, :skipped])
    ablated = at_site(model, tokens, set_latent(sae, latent, 0.0, skip=0))
    assert torch.allclose(ablated, x - f[..., latent, None] * sae.W_dec[latent], atol=1e-6)
    assert torch.equal(at_site(model, tokens, set_latent(sae, latent, lambda a: a)), x)
    assert losses(model, tokens, SITE, set_latent(sae, latent, lambda a: a)) == losses(model, tokens)
    assert torch.equal(at_site(model, tokens), x)
    assert not model.attached


def test_a_latent_that_is_off_can_be_switched_on():
    model, tokens, sae = random_model(), some_tokens(), sae_of_model()
    sae.b_enc[5] = -1000.0
    x = at_site(model, tokens)
    assert torch.equal(at_site(model, tokens, set_latent(sae, 5, 0.0)), x)
    steered = at_site(model, tokens, set_latent(sae, 5, 4.0))
    assert torch.allclose(steered[:, 1:], x[:, 1:] + 4 * sae.W_dec[5], atol=1e-5)


def perfect_sae(d):
    """x = ReLU(x) - ReLU(-x), with a third of its latents dead."""
    eye, none = torch.eye(d), torch.zeros(d, d)
    bias = torch.cat([torch.zeros(2 * d), -torch.ones(d)])
    return SAE(torch.cat([eye, -eye, none], dim=1), bias, torch.cat([eye, -eye, eye]), torch.zeros(d))


def continued(model, choose, batch=30):
    """Rows that go on as the model would have them, or as it would least."""
    tokens = some_tokens(batch, 12)
    for pos in range(11):
        tokens[:, pos + 1] = choose(model(tokens)[:, pos], dim=-1)
    return tokens


def test_quality_of_a_perfect_autoencoder():
    model = random_model()
    tokens = continued(model, torch.argmax)
    found = quality(model, SITE, perfect_sae(SHAPE.d_model), tokens)
    x = at_site(model, tokens)[:, 1:].flatten(0, 1)
    one_sided = ((x > 0).all(dim=0) | (x < 0).all(dim=0)).sum().item()
    assert found["l0"] == SHAPE.d_model
    assert found["dead"] == SHAPE.d_model + one_sided
    assert found["variance_unexplained"] == pytest.approx(0, abs=1e-9)
    assert found["spliced"] == pytest.approx(found["clean"], abs=1e-4)
    assert found["recovered_zero"] == pytest.approx(1, abs=1e-4)
    assert found["recovered_mean"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("skip", [1, 3])
def test_quality_by_hand(skip):
    model, tokens, sae = random_model(), some_tokens(), sae_of_model(k=5)
    found = quality(model, SITE, sae, tokens, skip)
    x = at_site(model, tokens)[:, skip:].reshape(-1, SHAPE.d_model)
    f = sae.encode(x)
    assert found["l0"] == pytest.approx((f > 0).sum().item() / len(x))
    assert found["dead"] == (~(f > 0).any(dim=0)).sum().item()
    expected = (x - sae.decode(f)).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert found["variance_unexplained"] == pytest.approx(expected.item(), rel=1e-5)
    values = {"zero": torch.zeros(SHAPE.d_model), "mean": x.mean(dim=0)}
    for name, by in values.items():

        def hook(y, hook, by=by):
            y[:, skip:] = by

        assert found[name] == pytest.approx(losses(model, tokens, SITE, hook), abs=1e-6)
    assert found["clean"] == losses(model, tokens)
    assert found["spliced"] == pytest.approx(losses(model, tokens, SITE, replaced(sae, skip)), abs=1e-6)
    for name in values:
        if found[name] > found["clean"]:
            share = (found[name] - found["spliced"]) / (found[name] - found["clean"])
            assert found[f"recovered_{name}"] == pytest.approx(share)
        else:
            assert math.isnan(found[f"recovered_{name}"])
    assert not model.attached


def test_quality_where_ablation_does_not_hurt():
    """As in a model that never learned anything: no share of nothing, and the other measures stand."""
    model = random_model()
    tokens = continued(model, torch.argmin)
    found = quality(model, "blocks.1.hook_resid_post", sae_of_model(k=5), tokens)
    assert found["zero"] < found["clean"]
    assert math.isnan(found["recovered_zero"])
    assert math.isfinite(found["variance_unexplained"])


def test_family_by_hand():
    small = SAE(torch.zeros(2, 3), torch.zeros(3), torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.zeros(2))
    W_dec = torch.tensor(
        [[3.0, 4.0], [1.0, 0.0], [0.0, 5.0], [4.0, 3.0], [1.0, -1.0]]
    )  # cosines with (1, 0): .6 1 0 .8 .707
    large = SAE(torch.zeros(2, 5), torch.zeros(5), W_dec, torch.zeros(2))
    assert family(small, large) == [[1, 3, 4], [0, 2], []]
    assert family(small, large, 0.75) == [[1, 3], [0, 2], []]
    assert family(small, large, 0.5) == [[0, 1, 3, 4], [0, 2, 3], []]
    assert family(small, large, 0.99) == [[1], [2], []]


# Dashboards ------------------------------------------------------------------------------------------


@pytest.fixture
def speaking():
    model = random_model()
    model.tokenizer = tinyworld.Tokenizer([tinyworld.BOS, *(f"w{i}" for i in range(SHAPE.d_vocab - 1))])
    return model


def activations_of(model, sae, tokens, latent):
    f = sae.encode(at_site(model, tokens))[..., latent]
    f[:, 0] = 0
    return f


def show(model, sae, tokens, latents, **more):
    return list(dashboards(model, SITE, sae, tokens, latents, **more))


def check_examples(board, f, words, top, lower, around):
    n_on, length = int((f > 0).sum()), f.shape[1]
    ranked = sorted(f[f > 0].tolist(), reverse=True)
    heights = [example.activations[example.at] for example in board.examples]
    assert heights == sorted(heights, reverse=True)
    if n_on <= top:
        assert heights == ranked
    else:
        evenly = [ranked[int(rank)] for rank in torch.linspace(top, n_on - 1, lower).tolist()]
        assert heights[:top] == ranked[:top]
        assert sorted(set(heights[top:])) == sorted(set(evenly) - set(heights[:top]))
        assert lower < 2 or heights[-1] == ranked[-1]
    places = set()
    for example in board.examples:
        row, at = next(
            (row, at)
            for row, at in itertools.product(range(len(f)), range(1, length))
            if f[row, at].item() == example.activations[example.at] and (row, at) not in places
        )
        places.add((row, at))
        window = range(max(1, at - around), min(length, at + around // 2 + 1))
        assert example.words == tuple(words[row][i] for i in window)
        assert example.activations == tuple(f[row, i].item() for i in window)
        assert example.words[example.at] == words[row][at]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"top": 3, "lower": 7, "around": 3, "bins": 5}, {"lower": 0}, {"lower": 1}], ids=str
)
def test_dashboards_are_what_they_claim(kind, options, speaking):
    tokens, sae, latents = some_tokens(12, 14), sae_of_model(**kind), [5, 0, 17, 39]
    words = [[speaking.tokenizer.vocab[i] for i in row] for row in tokens.tolist()]
    boards = show(speaking, sae, tokens, latents, **options)
    assert [board.latent for board in boards] == latents
    settings = {"top": 6, "lower": 4, "around": 8} | options
    bins = settings.pop("bins", 20)
    assert sum(len(board.examples) for board in boards) > 10
    for board in boards:
        f = activations_of(speaking, sae, tokens, board.latent)
        check_examples(board, f, words, **settings)
        on = f[f > 0].tolist()
        assert board.largest == max(on, default=0.0)
        assert board.rate == pytest.approx(len(on) / (12 * 13))
        assert len(board.histogram) == bins
        assert sum(board.histogram) == len(on)
        for i, count in enumerate(board.histogram):
            low, high = (board.largest * (j / bins) for j in (i, i + 1))
            slack = 1e-5 * board.largest
            assert sum(low + slack < a < high - slack for a in on) <= count
            assert count <= sum(low - slack <= a <= high + slack for a in on)


@pytest.mark.parametrize("times", range(8))
def test_latents_that_are_seldom_on(times, speaking):
    """Never, once, as often as there are examples, and a little more often."""
    tokens, sae = some_tokens(6, 9), sae_of_model()
    words = [[speaking.tokenizer.vocab[i] for i in row] for row in tokens.tolist()]
    heights = (at_site(speaking, tokens)[:, 1:] @ sae.W_enc[:, 7]).flatten().sort(descending=True).values
    sae.b_enc[7] = -heights[max(times - 1, 0) : times + 1].mean() if times else -heights[0] - 1
    (board,) = show(speaking, sae, tokens, [7], top=3, lower=2)
    f = activations_of(speaking, sae, tokens, 7)
    assert (f > 0).sum() == times
    assert len(board.examples) == min(times, 5)
    check_examples(board, f, words, 3, 2, 8)


def test_a_latent_that_is_never_on(speaking):
    sae = sae_of_model()
    sae.b_enc[4] = -1000.0
    (board,) = show(speaking, sae, some_tokens(), [4], bins=7)
    assert (board.rate, board.largest, board.examples) == (0.0, 0.0, ())
    assert board.histogram == (0,) * 7
    assert len(board.raises) == len(board.lowers) == 8  # its direction still points somewhere


def test_the_first_position_is_not_counted(speaking):
    tokens, sae = some_tokens(), sae_of_model()
    tokens[:, 0] = 0
    x = at_site(speaking, tokens)
    sae.W_enc[:, 2] = F.normalize(x[0, 0], dim=0)
    sae.b_enc[2] = 0.0
    assert (sae.encode(x)[:, 0, 2] > 0).all()
    (board,) = show(speaking, sae, tokens, [2])
    f = sae.encode(x)[:, 1:, 2]
    assert board.largest == f.max()
    assert sum(board.histogram) == (f > 0).sum()
    assert tinyworld.BOS not in {word for example in board.examples[:1] for word in example.words[: example.at]}


def test_words_that_a_latent_raises_and_lowers(speaking):
    sae = sae_of_model()
    for board in show(speaking, sae, some_tokens(), [3, 8]):
        effect = word_effects(speaking, sae.W_dec[[board.latent]])[0].tolist()
        ranked = sorted(zip(effect, speaking.tokenizer.vocab, strict=True), reverse=True)
        assert [word for word, _ in board.raises] == [word for _, word in ranked[:8]]
        assert [by for _, by in board.raises] == pytest.approx([by for by, _ in ranked[:8]], abs=1e-5)
        assert [word for word, _ in board.lowers] == [word for _, word in ranked[::-1][:8]]
        assert [by for _, by in board.lowers] == pytest.approx([by for by, _ in ranked[::-1][:8]], abs=1e-5)
        assert board.raises[0][1] > 0 > board.lowers[0][1]


def test_a_site_that_is_not_as_wide_as_the_stream(speaking):
    d_mlp = speaking.cfg.d_mlp
    sae = SAE.random(d_mlp, 7, torch.Generator().manual_seed(0))
    boards = dashboards(speaking, "blocks.0.mlp.hook_post", sae, some_tokens(), [0])
    with pytest.raises(ValueError, match=f"hook_post has {d_mlp} dimensions and the stream {speaking.cfg.d_model}"):
        next(boards)


def test_dashboards_are_the_same_every_time_and_change_nothing(speaking):
    tokens, sae = some_tokens(), sae_of_model(k=5)
    before = at_site(speaking, tokens)
    with torch.enable_grad():
        boards = dashboards(speaking, SITE, sae, tokens, [1, 2, 3])
        first = next(boards)
        assert torch.is_grad_enabled()
        assert [first, *boards] == show(speaking, sae, tokens, [1, 2, 3])
    alone = next(dashboards(speaking, SITE, sae, tokens, [first.latent]))
    assert (alone.examples, alone.histogram) == (first.examples, first.histogram)
    assert torch.equal(at_site(speaking, tokens), before)
    assert show(speaking, sae, tokens, []) == []
