"""The corpus: every sentence's ground truth is true of its words, and what is held out never occurs in training."""

import itertools
import random
from collections import Counter

import pytest
import torch

from interp_edu import tinyworld as tw


@pytest.fixture(scope="module")
def sentences():
    """The sentences of 2,000 training rows."""
    rng, tokenizer = random.Random(0), tw.Tokenizer()
    return [s for _ in range(2000) for s in tw.row(rng, tokenizer)]


def test_indirect_objects_are_what_they_say(sentences):
    ours = [s for s in sentences if s.kind == "indirect object"]
    assert len(ours) > 2000
    for s in ours:
        io, s1, after, s2, end = (s.roles[role] for role in ("IO", "S1", "S1+1", "S2", "END"))
        assert s.answer == s.words[io] == s.words[end + 1]
        assert s.words[s1] == s.words[s2] != s.words[io]
        assert max(io, s1) < s2 < end
        assert after == s1 + 1
        assert Counter(w for w in s.words[: end + 1] if w in tw.NAMES) == {s.words[io]: 1, s.words[s1]: 2}
    order = [s.roles["IO"] < s.roles["S1"] for s in ours]
    assert sum(order) / len(order) == pytest.approx(0.5, abs=0.05)  # ABBA and BABA
    assert len({s.roles["END"] for s in ours}) > 15  # lead-ins move everything about
    assert {s.template[0] for s in ours} == set(range(12))
    assert {s.template[1] for s in ours} == set(range(10))


def test_third_person(sentences):
    third = [s for s in sentences if s.kind == "third"]
    share = len(third) / (len(third) + sum(s.kind == "indirect object" for s in sentences))
    assert share == pytest.approx(0.1, abs=0.02)
    for s in third:
        assert len({s.words[s.roles[role]] for role in "ABC"}) == 3
        assert s.answer == s.words[s.roles["END"] + 1] == "them"


def test_facts_are_told_truly(sentences):
    facts = [s for s in sentences if s.kind == "fact"]
    assert len({s.fact for s in facts}) > 370  # nearly all have been told once
    aside = 0
    for s in facts:
        assert (s.words[s.roles["subject"] - 1], s.words[s.roles["subject"]]) == s.fact.subject
        assert s.answer == s.fact.answer == s.words[s.roles["END"] + 1]
        assert s.fact in tw.FACTS
        aside += sum(word in tw.FIRST for word in s.words) > 1
    people = sum(s.fact.subject[0] in tw.FIRST for s in facts)
    assert aside / people == pytest.approx(0.3, abs=0.05)


def test_no_single_word_tells_a_fact():
    """Guessing by the best rule that sees only one word of a subject does far worse than knowing."""
    for relation in tw.ANSWERS:
        for part in (0, 1):
            table = {}
            for fact in tw.FACTS:
                if fact.relation == relation:
                    table.setdefault(fact.subject[part], Counter())[fact.answer] += 1
            right = sum(counts.most_common(1)[0][1] for counts in table.values())
            assert right / sum(counts.total() for counts in table.values()) < 0.51
        answers = Counter(fact.answer for fact in tw.FACTS if fact.relation == relation)
        assert len(set(answers.values())) == 1
        assert set(answers) == set(tw.ANSWERS[relation])


def test_what_is_held_out_is_not_trained_on(sentences):
    for s in sentences:
        if s.kind in ("indirect object", "third"):
            first, second = (s.words[s.roles[r]] for r in (("IO", "S1") if s.kind == "indirect object" else "AB"))
            assert not tw.held_out_names(first, second)
            assert not tw.held_out_templates(*s.template)
        elif s.kind == "fact":
            assert not tw.held_out_paraphrase(s.fact, *s.template)
    rng = random.Random(1)
    for _ in range(200):
        s = tw.indirect_object(rng, held_out=True)
        assert tw.held_out_names(s.words[s.roles["IO"]], s.words[s.roles["S1"]])
        assert tw.held_out_templates(*s.template)
        s = tw.random_fact(rng, held_out=True)
        assert tw.held_out_paraphrase(s.fact, *s.template)
    pairs = list(itertools.combinations(tw.NAMES, 2))
    assert sum(itertools.starmap(tw.held_out_names, pairs)) / len(pairs) == pytest.approx(0.1, abs=0.03)
    templates = list(itertools.product(range(12), range(10)))
    assert sum(itertools.starmap(tw.held_out_templates, templates)) / 120 == pytest.approx(1 / 9, abs=0.03)
    assert Counter(sum(tw.held_out_paraphrase(f, n) for n in range(6)) for f in tw.FACTS) == {1: 384}
    assert all(tw.held_out_names(a, b) == tw.held_out_names(b, a) for a, b in pairs)
    # Names that never meet must not form groups: within a group nothing would ask a model to tell them apart.
    common = [(b, c) for a in tw.NAMES for b, c in pairs if tw.held_out_names(a, b) and tw.held_out_names(a, c)]
    assert sum(itertools.starmap(tw.held_out_names, common)) / len(common) < 0.2


def test_repeats(sentences):
    rows = [s for s in sentences if s.kind == "repeat"]
    assert len(rows) / 2000 == pytest.approx(tw.Mix().repeats, abs=0.03)
    assert len({s.roles["repeat"] for s in rows}) > 8
    for s in rows:
        period = s.roles["repeat"]
        assert s.words[period:] == s.words[: len(s.words) - period]


def test_phrases():
    """At least two of three words follow from the word before; which phrase comes next does not."""
    rng, tokenizer = random.Random(0), tw.Tokenizer()
    for _ in range(50):
        words = tw.phrases(rng, tokenizer).words
        assert len(words) == 24
        assert len(set(words)) <= 9
        followers = {}
        for a, b in itertools.pairwise(words):
            followers.setdefault(a, set()).add(b)
        assert sum(len(after) == 1 for after in followers.values()) >= len(followers) - 4


def test_batches_and_their_seed():
    tokenizer = tw.Tokenizer()
    first, again, other = (tw.batch(random.Random(seed), tokenizer, 4) for seed in (0, 0, 1))
    assert first.shape == (4, tw.N_CTX)
    assert (first[:, 0] == tokenizer.bos).all()
    assert (first[:, 1:] != tokenizer.bos).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert tw.batch(random.Random(0), tokenizer, 8, tw.Mix(repeats=1.0)).shape == (8, tw.N_CTX)


def test_tokenizer():
    tokenizer = tw.Tokenizer()
    text = "When Mary and John went to the store, John gave a book to Mary."
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens[0, 1:]) == text
    assert tokenizer.str_tokens(text)[:4] == [tw.BOS, "When", "Mary", "and"]
    assert tokenizer.encode([text, text], bos=False).shape == (2, tokens.shape[1] - 1)
    assert len(set(tokenizer.vocab)) == len(tokenizer) == tw.CONFIG.d_vocab
    with pytest.raises(ValueError, match="no word 'Marry'; the nearest are Mary"):
        tokenizer.encode("Marry lives in Paris")
    with pytest.raises(ValueError, match="encode them singly"):
        tokenizer.encode(["Mary", "Mary and John"])


def test_every_sentence_can_be_read(sentences):
    tokenizer = tw.Tokenizer()
    for s in sentences:
        words = s.words
        assert tokenizer.str_tokens(tokenizer.encode(" ".join(words), bos=False)[0]) == list(words)
        assert s.kind == "repeat" or words[-1] == "."
        if "END" in s.roles:
            assert s.prompt().split() == list(words[: s.roles["END"] + 1])
