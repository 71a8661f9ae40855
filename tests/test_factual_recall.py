"""Factual recall: prompts by hand, tracing and transplants against plain hooks, edits against closed forms, and a wired store of facts as truth."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from interp_edu import handmade, tinyworld
from interp_edu.factual_recall import (
    Questions,
    neuron_values,
    questions,
    rank_one_edit,
    rome,
    second_moment,
    share,
    strangers,
    trace,
    transplant,
    wanted_change,
    with_interval,
)
from interp_edu.folding import fold_layer_norm
from interp_edu.handmade import circuit_free, fact_model, gate_model, stored_facts
from interp_edu.hooks import hooked
from interp_edu.tinyworld import FACTS, TOKENIZER, Fact
from interp_edu.transformer import Config
from tests.test_ioi import course_like
from tests.test_transformer import SHAPE, random_model, tokens

RELATIONS = list(handmade.FACT_WORDS)
SUBJECTS = list(itertools.product(handmade.FACT_FIRST, handmade.FACT_LAST))
FIRST, LAST, END = 2, 3, 5  # where the subject's words and the relation stand: <bos> the Clara Stone is job


def of(relation, n=None, start=0):
    return [fact for fact in FACTS if fact.relation == relation][start : None if n is None else start + n]


def asked_by_hand(tokenizer, relation, subjects=SUBJECTS):
    """All subjects of the wired model, in its own words."""
    known = stored_facts()
    facts = [Fact(subject, relation, known[*subject, relation]) for subject in subjects]
    rows = [f"the {a} {b} is {relation}" for a, b in subjects]
    answers = torch.tensor([tokenizer.id(fact.answer) for fact in facts])
    return Questions(tokenizer.encode(rows), answers, (FIRST, LAST), tuple(facts))


def store(loud=1.0):
    """The wired model. Noise on a name enters the stream beside what MLP 0 writes: a louder MLP drowns it out."""
    model = fact_model(gain=10 / loud).model
    model.blocks[0].mlp.W_out.mul_(loud)
    return model


def random_questions(batch=3, length=7, subject=(2, 3), seed=0, answers=(11, 12, 13)):
    return Questions(tokens(batch, length, seed), torch.tensor(answers[:batch]), subject, (FACTS[0],) * batch)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(a, b):
    return [name for name, value in a.items() if not torch.equal(value, b[name])]


# Questions ---------------------------------------------------------------------------------------


def test_questions_by_hand():
    fact, other = Fact(("Clara", "Stone"), "home", "Rome"), Fact(("Iris", "Wolf"), "home", "Oslo")
    q = questions(TOKENIZER, [fact, other], 0, ", unlike Otto Marsh ,")
    texts = [f"{a} {b}, unlike Otto Marsh, lives in" for a, b in (("Clara", "Stone"), ("Iris", "Wolf"))]
    assert torch.equal(q.tokens, TOKENIZER.encode(texts))
    assert q.answers.tolist() == [TOKENIZER.id("Rome"), TOKENIZER.id("Oslo")]
    assert (q.subject, q.facts) == ((1, 2), (fact, other))
    later = questions(TOKENIZER, (fact,), 1)
    assert torch.equal(later.tokens, TOKENIZER.encode("The home of Clara Stone is in"))
    assert later.subject == (4, 5)


@pytest.mark.parametrize("aside", ["", ", a friend of Otto Marsh ,", ", who knows Clara Marsh well ,"])
@pytest.mark.parametrize("relation", tinyworld.ANSWERS)
def test_questions_in_every_form(relation, aside):
    """A namesake in the aside, too: the subject is the first of two to be called Clara."""
    facts = of(relation)
    if relation in ("city", "material") and aside:
        facts = facts[:5]
    for n, template in enumerate(tinyworld.PARAPHRASES[relation]):
        q = questions(TOKENIZER, facts, n, aside)
        before, after = template.split("{X}")
        for fact, row, answer in zip(facts, q.tokens.tolist(), q.answers.tolist(), strict=True):
            text = f"{tinyworld.BOS} {before} {' '.join(fact.subject)} {aside} {after}"
            words = [TOKENIZER.vocab[i] for i in row]
            assert words == text.split()
            assert (words[q.subject[0]], words[q.subject[1]]) == fact.subject
            assert TOKENIZER.vocab[answer] == fact.answer
        assert q.subject == (1 + len(before.split()), 2 + len(before.split()))


@pytest.mark.parametrize(
    ("facts", "settings", "words"),
    [
        ([], {}, "one form, but 0"),
        ([*of("home", 2), *of("job", 2)], {}, "one form, but 2"),
        ([*of("city", 2), *of("material", 1), *of("home", 1)], {"paraphrase": 4}, "one form, but 3"),
        ([Fact(("Clara", "Stone"), "home", "Atlantis")], {}, "no word 'Atlantis'"),
        (of("home", 1), {"aside": ", unlike Zoe Marsh ,"}, "no word 'Zoe'"),
    ],
)
def test_questions_that_cannot_be_asked_together(facts, settings, words):
    with pytest.raises(ValueError, match=words):
        questions(TOKENIZER, facts, **settings)


def test_strangers_live_elsewhere_and_share_no_name():
    names = ["Clara Stone", "Hugo Reed", "Hugo Wolf", "Iris Berg", "Felix Berg", "Vera Lake"]
    homes = ["Rome", "Oslo", "Cairo", "Cairo", "Paris", "Paris"]
    facts = [Fact(tuple(name.split()), "home", home) for name, home in zip(names, homes, strict=True)]
    q, donors = strangers(TOKENIZER, facts, 1, ", unlike Otto Marsh ,")
    pairs = [(0, 1), (5, 0)]  # else: Hugo, Cairo, Berg, Paris
    assert q.facts == tuple(facts[i] for i, _ in pairs)
    assert donors.facts == tuple(facts[j] for _, j in pairs)
    expected = [f"The home of {names[i]}, unlike Otto Marsh, is in" for i, _ in pairs]
    assert torch.equal(q.tokens, TOKENIZER.encode(expected))
    assert q.subject == donors.subject == (4, 5)
    with pytest.raises(ValueError, match="one form, but 0"):
        strangers(TOKENIZER, facts[1:3])


def test_what_is_said_at_the_end():
    model, q = course_like(), questions(TOKENIZER, of("home", 4))
    said = q.asked(model.requires_grad_())
    assert not said.requires_grad
    assert torch.allclose(said, torch.stack([model(row[None])[0, -1] for row in q.tokens]).detach(), atol=1e-5)


# Intervals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_shares(hits, n, low, high):
    """Newcombe (1998), table I, method 3; and the other way round."""
    row = torch.arange(n) < hits
    assert share(row) == pytest.approx((hits / n, low, high), abs=6e-5)
    assert share(~row) == pytest.approx((1 - hits / n, 1 - high, 1 - low), abs=6e-5)


def test_an_interval_by_hand():
    mean, half = with_interval(torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]], [[5.0, 5.0]], [[7.0, 5.0]]]))
    assert mean.tolist() == [[4, 5]]
    assert half.flatten().tolist() == pytest.approx([1.96 * math.sqrt((9 + 1 + 1 + 9) / 3) / 2, 0])


# Causal tracing ----------------------------------------------------------------------------------


def traced_by_hooks(model, q, site, *, window, samples, scale, seed):
    """The same from the words: noise on the embeddings by one hook, the clean activation put back by others."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted, restored = [], [], []
    n_layers, length = model.cfg.n_layers, q.tokens.shape[1]
    for row, answer in zip(q.tokens, q.answers.tolist(), strict=True):
        noise = scale * model.embed.W_E.std() * torch.randn(samples * 2, model.cfg.d_model, generator=generator)
        kept = {}

        def keep(x, hook, kept=kept):
            kept[hook.name] = x.clone()

        def add(x, hook, noise=noise):
            x[:, list(q.subject)] += noise.view(samples, 2, -1)

        def right(hooks, row=row, answer=answer):
            with hooked(model, hooks):
                return model(row.expand(samples, -1))[:, -1].softmax(dim=1)[:, answer].mean().item()

        names = [f"blocks.{layer}.hook_{site}" for layer in range(n_layers)]
        clean.append(right([(names, keep)]))
        corrupted.append(right([("hook_embed", add)]))
        for layer, pos in itertools.product(range(n_layers), range(length)):

            def put(x, hook, pos=pos, kept=kept):
                x[:, pos] = kept[hook.name][:, pos]

            first = max(0, layer - window // 2)
            restored.append(right([("hook_embed", add), (names[first : layer - window // 2 + window], put)]))
    return torch.tensor(clean), torch.tensor(corrupted), torch.tensor(restored).view(-1, n_layers, length)


@pytest.mark.parametrize(
    ("site", "change", "settings"),
    [
        ("resid_pre", {}, {"window": 1, "samples": 2, "scale": 3.0, "seed": 0}),
        ("mlp_out", {"n_layers": 4}, {"window": 3, "samples": 3, "scale": 1.0, "seed": 5}),
        (
            "attn_out",
            {"n_layers": 3, "attn_only": True, "d_mlp": 0},
            {"window": 2, "samples": 1, "scale": 6.0, "seed": 1},
        ),
        (
            "mlp_out",
            {"normalization_type": None, "act_fn": "relu"},
            {"window": 1, "samples": 2, "scale": 1.0, "seed": 2},
        ),
    ],
    ids=["stream", "window of 3", "window of 2", "no LayerNorm"],
)
def test_tracing_is_running_with_hooks(site, change, settings):
    model, q = random_model(Config(**{**vars(SHAPE), **change})), random_questions(2)
    q = replace(q, answers=q.asked(model).argmax(dim=1))  # what is likely can change
    before = state(model)
    found = trace(model, q, site, **settings)
    for ours, expected in zip(
        (found.clean, found.corrupted, found.restored), traced_by_hooks(model, q, site, **settings), strict=True
    ):
        assert torch.allclose(ours, expected, atol=1e-5, rtol=1e-4)
    assert found.indirect.abs().max() > 1e-2
    assert torch.equal(found.indirect, found.restored - found.corrupted[:, None, None])
    assert torch.equal(found.total, found.clean - found.corrupted)
    assert (found.indirect[:, :, : q.subject[0]] == 0).all()  # there is nothing to restore yet
    assert not differing(before, model.state_dict())
    assert not model.attached


def test_tracing_by_default_and_again():
    model, q = random_model(), random_questions()
    found, same, other = (trace(model, q, seed=seed) for seed in (0, 0, 1))
    assert found.restored.shape == (3, 2, 7)
    for a, b, c in ((x.corrupted, y.corrupted, z.corrupted) for x, y, z in [(found, same, other)]):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert torch.equal(found.restored, same.restored)
    assert torch.equal(found.clean, other.clean)
    said = model(q.tokens)[:, -1].softmax(dim=1)
    assert found.clean.tolist() == pytest.approx([said[i, i + 11].item() for i in range(3)], abs=1e-6)
    explicit = trace(model, q, "resid_pre", window=1, samples=8, scale=3.0, seed=0)
    assert torch.equal(found.restored, explicit.restored)
    gradients = trace(random_model().requires_grad_(), q)
    assert torch.allclose(gradients.restored, found.restored, atol=1e-6)
    assert not gradients.restored.requires_grad


@pytest.mark.parametrize("relation", RELATIONS)
def test_tracing_finds_the_store_and_the_readers(relation):
    """Everything of MLP 0 at the last name, of the stream there until it is read, and of what is read at END."""
    model = store(loud=10)
    q = asked_by_hand(model.tokenizer, relation)
    found = {site: trace(model, q, site, scale=5.0, samples=6) for site in ("resid_pre", "mlp_out", "attn_out")}
    for t in found.values():
        assert (t.clean > 0.99).all()
        assert t.corrupted.mean() < 0.5
    part = {site: t.indirect.mean(dim=0) / t.total.mean() for site, t in found.items()}
    wanted = {"resid_pre": {(1, LAST)}, "mlp_out": {(0, LAST)}, "attn_out": {(1, END)}}
    some = {"resid_pre": {(0, FIRST), (0, LAST)}, "mlp_out": set(), "attn_out": {(0, LAST)}}  # one of two names
    for site, effects in part.items():
        for at in itertools.product(range(2), range(6)):
            if at in wanted[site]:
                assert effects[at] > 0.85, (site, at)
            elif at in some[site]:
                assert effects[at] < 0.7, (site, at)
            else:
                assert abs(effects[at]) < 0.05, (site, at)
    assert part["resid_pre"][0, LAST] > 0.3
    assert part["attn_out"][0, LAST] > 0.1  # the first name, which L0H0 brings
    both = trace(model, q, "mlp_out", scale=5.0, samples=6, window=2)
    assert torch.equal(both.corrupted, found["mlp_out"].corrupted)
    after = (both.indirect.mean(dim=0) / both.total.mean())[:, LAST]
    assert torch.allclose(after, part["mlp_out"][0, LAST], atol=1e-5)  # layer 0, and layers 0 and 1


def test_tracing_finds_nothing_where_nothing_is():
    wired = fact_model()
    for seed in range(3):
        model = circuit_free(wired, seed)
        for site in ("mlp_out", "attn_out"):
            found = trace(model, asked_by_hand(model.tokenizer, "home"), site, scale=5.0)
            assert found.indirect.mean(dim=0).abs().max() < 0.1
            assert found.clean.mean() < 0.4


# Moving a fact -----------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_transplant_moves_the_fact_from_mlp_0_and_from_nowhere_else(relation):
    model = store()
    pairs = list(itertools.product(range(16), repeat=2))
    q, donors = (
        asked_by_hand(model.tokenizer, relation, [SUBJECTS[pair[side]] for pair in pairs]) for side in range(2)
    )
    differ = q.answers != donors.answers
    assert differ.sum() == 16 * 12

    def says(names, positions):
        return transplant(model, q, donors, names, positions).argmax(dim=1)

    assert torch.equal(says(["blocks.0.hook_mlp_out"], [LAST]), donors.answers)
    assert torch.equal(says(["blocks.0.hook_mlp_out"], [LAST - 6]), donors.answers)
    for layer, pos in set(itertools.product(range(2), range(6))) - {(0, LAST)}:
        assert torch.equal(says([f"blocks.{layer}.hook_mlp_out"], [pos]), q.answers), (layer, pos)
    assert torch.equal(says(["blocks.1.hook_mlp_out"], range(6)), q.answers)
    assert torch.equal(says(["blocks.1.hook_attn_out"], [END]), donors.answers)
    assert torch.equal(says(["hook_embed"], [FIRST, LAST]), donors.answers)
    names = (f"blocks.{layer}.hook_mlp_out" for layer in range(2))
    assert torch.equal(says(names, [LAST]), donors.answers)  # an iterator is read once


def test_the_recipient_keeps_its_own_question():
    """Subjects give what they know, whatever was asked of them."""
    model = store()
    q, donors = asked_by_hand(model.tokenizer, "home"), asked_by_hand(model.tokenizer, "job", SUBJECTS[::-1])
    says = transplant(model, q, donors, ["blocks.0.hook_mlp_out"], [LAST]).argmax(dim=1)
    assert torch.equal(says, asked_by_hand(model.tokenizer, "home", SUBJECTS[::-1]).answers)


def test_a_transplant_by_plain_hooks():
    model, q, donors = random_model(), random_questions(), random_questions(seed=1)
    names, positions = ["blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"], (3, -1)
    rows = []
    for to, source in zip(q.tokens, donors.tokens, strict=True):
        kept = {}
        with hooked(model, [(names, lambda x, hook, kept=kept: kept.update({hook.name: x}))]):
            model(source[None])

        def put(x, hook, kept=kept):
            for pos in positions:
                x[0, pos] = kept[hook.name][0, pos]

        with hooked(model, [(names, put)]):
            rows.append(model(to[None])[0, -1])
    found = transplant(model, q, donors, names, positions)
    assert torch.allclose(found, torch.stack(rows), atol=1e-5)
    assert not torch.allclose(found, q.asked(model), atol=0.1)
    assert torch.allclose(transplant(model, q, donors, [], [3]), q.asked(model), atol=1e-6)
    assert torch.allclose(transplant(model, q, donors, names, []), q.asked(model), atol=1e-6)
    assert torch.allclose(
        transplant(model, q, donors, ["blocks.1.hook_resid_post"], range(7)), donors.asked(model), atol=1e-5
    )
    assert not model.attached
    assert not transplant(model.requires_grad_(), q, donors, names, positions).requires_grad


def test_transplants_that_cannot_be():
    model = random_model()
    for donors in (random_questions(2), random_questions(3, 6)):
        with pytest.raises(ValueError, match=r"recipients are \[3, 7\].*, donors \[.*: ask both in one form"):
            transplant(model, random_questions(3), donors, ["hook_embed"], [3])
    with pytest.raises(ValueError, match="no hook point 'mlp_out'"):
        transplant(model, random_questions(), random_questions(), ["mlp_out"], [3])
    assert not model.attached


def test_a_transplant_between_forms_of_one_length():
    """`Clara Stone has a house in` and `You find the Silver Tower in`: as long, but with the subject elsewhere."""
    q, donors = questions(TOKENIZER, of("home", 1), 2), questions(TOKENIZER, of("city", 1), 1)
    assert q.tokens.shape == donors.tokens.shape
    assert q.subject != donors.subject
    with pytest.raises(ValueError, match="one form"):
        transplant(course_like(), q, donors, ["blocks.0.hook_mlp_out"], q.subject)


# What neurons write ------------------------------------------------------------------------------


def test_values_of_neurons_by_hand():
    model = gate_model(gain=5.0).model  # relu(n - 1) - relu(n - 2) goes to `yes`, ten times; there are six words
    yes = model.tokenizer.id("yes")
    expected = torch.zeros(2, 6)
    expected[:, yes] = torch.tensor([10.0, -10.0])
    expected -= torch.tensor([[10 / 6], [-10 / 6]])
    assert torch.allclose(neuron_values(model, 0), expected, atol=1e-6)


def test_values_of_the_stored_facts():
    """They say nothing until the readers have moved them; through the readers' weights each says its three answers."""
    model = fact_model(gain=7.0).model
    assert neuron_values(model, 0).abs().max() == 0
    attn = model.blocks[1].attn
    model.unembed.W_U.copy_(torch.einsum("hde,hef,fv->dv", attn.W_V, attn.W_O, model.unembed.W_U))
    values, known = neuron_values(model, 0), stored_facts()
    for subject, row in zip(SUBJECTS, values, strict=True):
        answers = {model.tokenizer.id(known[*subject, relation]) for relation in RELATIONS}
        assert set((row > 1).nonzero()[:, 0].tolist()) == answers
        assert row.sum().abs() < 1e-5
        assert (row.max() - row.min()).item() == pytest.approx(7, abs=1e-5)
    assert neuron_values(model, 1).abs().max() == 0


@pytest.mark.parametrize("kind", ["LN", None, "LNPre", "folded"])
def test_values_are_what_the_logits_gain(kind):
    """One unit of a neuron more, with the last LayerNorm's scale held at 1: less the mean, that is what each word gains."""
    model = random_model(replace(SHAPE, normalization_type="LN" if kind == "folded" else kind))
    model = fold_layer_norm(model) if kind == "folded" else model
    stream = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(0))
    frozen = [("ln_final.hook_scale", lambda x, hook: torch.ones_like(x))] if kind else []
    with hooked(model, frozen):
        base = model(stream, start_at_layer=2)[0, 0]
        for layer in range(2):
            values = neuron_values(model, layer)
            assert values.shape == (28, 50)
            for neuron, row in enumerate(model.blocks[layer].mlp.W_out):
                gain = model(stream + row, start_at_layer=2)[0, 0] - base
                assert torch.allclose(values[neuron], gain - gain.mean(), atol=1e-4), (layer, neuron)


def test_values_by_loops():
    model = random_model()
    W_U, w = model.unembed.W_U.tolist(), model.ln_final.w.tolist()
    values = neuron_values(model, 1)
    for neuron in (0, 13, 27):
        row = model.blocks[1].mlp.W_out[neuron].tolist()
        mean = sum(row) / 24
        logits = [sum((row[d] - mean) * w[d] * W_U[d][word] for d in range(24)) for word in range(50)]
        expected = [logit - sum(logits) / 50 for logit in logits]
        assert values[neuron].tolist() == pytest.approx(expected, abs=1e-4)


# Editing a fact ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
def test_the_second_moment_by_loops(layer):
    model, rows, seen = random_model().requires_grad_(), tokens(3, 5), []
    with torch.no_grad():
        for row in rows:
            for n in range(1, 6):
                with hooked(model, [(f"blocks.{layer}.mlp.hook_post", lambda x, hook: seen.append(x[0, -1].double()))]):
                    model(row[None, :n])
    expected = sum(torch.outer(k, k) for k in seen) / len(seen)
    found = second_moment(model, layer, rows)
    assert found.shape == (28, 28)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert not found.requires_grad


def problem(seed=0, n=300):
    """A model, a key, a change, and keys in use that differ in size and are correlated."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(28) + 0.2 * torch.randn(28, 28, generator=generator)
    keys = torch.randn(n, 28, generator=generator) @ mix + 0.5
    return random_model(), torch.randn(28, generator=generator), torch.randn(24, generator=generator), keys.T @ keys / n


@pytest.mark.parametrize("layer", [0, 1])
def test_an_edit_maps_the_key_to_its_old_output_plus_the_change_and_touches_nothing_else(layer):
    model, key, change, moment = problem()
    model.requires_grad_()
    before = state(model)
    edited = rank_one_edit(model, layer, key, change, moment)
    assert not differing(before, model.state_dict())
    assert differing(before, edited.state_dict()) == [f"blocks.{layer}.mlp.W_out"]
    assert all(p.requires_grad for p in edited.parameters())
    update = (edited.blocks[layer].mlp.W_out - model.blocks[layer].mlp.W_out).detach()
    assert torch.allclose(key @ update, change, atol=1e-4)
    assert torch.linalg.matrix_rank(update, rtol=1e-4) == 1
    edited.blocks[layer].mlp.W_in.data.zero_()  # nothing is shared with the model
    assert not differing(before, model.state_dict())
    assert not any(p.requires_grad for p in rank_one_edit(problem()[0], layer, key, change, moment).parameters())


def test_of_all_such_edits_it_changes_other_outputs_least():
    model, key, change, moment = problem()
    update = (rank_one_edit(model, 0, key, change, moment).blocks[0].mlp.W_out - model.blocks[0].mlp.W_out).double()
    key, change, C = key.double(), change.double(), moment.double()

    def cost(D):
        return torch.trace(D.T @ C @ D).item()

    # Lagrange: 2 C D + key lambda^T = 0 and key^T D = change, all columns at once.
    system = torch.cat([torch.cat([2 * C, key[:, None]], dim=1), torch.cat([key, key.new_zeros(1)])[None]])
    best = torch.linalg.solve(system, torch.cat([torch.zeros(28, 24).double(), change[None]]))[:28]
    assert torch.allclose(key @ best, change)
    assert torch.allclose(update, best, atol=0.01 * best.abs().max().item())
    assert cost(update) == pytest.approx(cost(best), rel=1e-3)
    generator = torch.Generator().manual_seed(1)
    for size in (0.01, 0.1, 1.0):
        for _ in range(50):
            aside = torch.randn(28, 24, generator=generator, dtype=torch.double)
            aside -= torch.outer(key, key @ aside) / (key @ key)
            assert cost(update + size * aside) > cost(update)
            u = update @ change / (change @ change) + size * torch.randn(28, generator=generator, dtype=torch.double)
            assert cost(torch.outer(u / (key @ u), change)) > cost(update)


def test_edits_that_one_can_work_out():
    model, key, change, _ = problem()
    W = model.blocks[0].mlp.W_out

    def update(moment):
        return rank_one_edit(model, 0, key, change, moment).blocks[0].mlp.W_out - W

    expected = torch.outer(key, change) / (key @ key)
    assert torch.allclose(update(torch.eye(28)), expected, atol=1e-5)
    scales = torch.linspace(0.5, 3, 28)
    expected = torch.outer(key / scales, change) / (key @ (key / scales))
    assert torch.allclose(update(torch.diag(scales)), expected, atol=2e-3)
    assert torch.allclose(update(1e-6 * torch.diag(scales)), expected, atol=2e-3)  # its size does not matter
    dead = torch.eye(28)
    dead[5, 5] = 0  # no other key uses this neuron, so it alone is told
    told = update(dead)
    assert torch.allclose(told[5], change / key[5], atol=0.02)
    assert told[[i for i in range(28) if i != 5]].abs().max() < 0.02 * told[5].abs().max()


def test_what_an_edit_does_to_a_run():
    model, q = random_model(), random_questions(1)
    change = torch.randn(24, generator=torch.Generator().manual_seed(3))
    seen = []
    with hooked(model, [("blocks.1.mlp.hook_post", lambda x, hook: seen.append(x[0, 3]))]):
        model(q.tokens)
    edited = rank_one_edit(model, 1, seen[0], change, second_moment(model, 1, tokens(40, 9, 7)))
    out = []
    for one in (model, edited):
        with hooked(one, [("blocks.1.hook_mlp_out", lambda x, hook: out.append(x[0, 3]))]):
            one(q.tokens)
    assert torch.allclose(out[1] - out[0], change, atol=1e-4)


@pytest.mark.parametrize("keeps", [False, True])
def test_the_change_is_the_best_one(keeps):
    """Of the objective as it is stated: at the end its derivatives, by finite differences, are gone."""
    model, q, target, decay = random_model().double(), random_questions(), 28, 0.2
    keep = [random_questions(2, 9, (4, 5), seed=3), random_questions(1, 6, (1, 2), seed=4)] if keeps else []
    seen = []
    with hooked(model, [("blocks.0.hook_mlp_out", lambda x, hook: seen.append(x[:, 3]))]):
        model(q.tokens)
    size = sum(row.norm().item() for row in seen[0]) / 3

    def loss(change):
        p = with_change(model, 0, q, change)[:, target]
        total = -p.log().mean() + decay * (change.norm() / size) ** 2
        for other in keep:
            before, after = (with_change(model, 0, other, x) for x in (0 * change, change))
            total += (before * (before / after).log()).sum(dim=1).mean()
        return total.item()

    def slope(change):
        eye = 1e-4 * torch.eye(24, dtype=torch.double)
        return torch.tensor([(loss(change + e) - loss(change - e)) / 2e-4 for e in eye]).norm().item()

    found = wanted_change(model, 0, q, target, keep=keep, steps=300, lr=0.05, decay=decay).double()
    assert loss(found) < loss(0 * found) - 1
    assert slope(found) < 0.02 * slope(0 * found)


def test_other_questions_are_kept():
    model, q, kept = random_model(), random_questions(1), random_questions(1, 9, (4, 5), seed=3)
    before = with_change(model, 0, kept, torch.zeros(24))

    def moved(change):
        return (before * (before / with_change(model, 0, kept, change)).log()).sum().item()

    free, bound = (wanted_change(model, 0, q, 28, keep=keep) for keep in ((), (kept,)))
    assert moved(bound) < 0.5 * moved(free)
    for change in (free, bound):
        assert with_change(model, 0, q, change).argmax().item() == 28
    moment = second_moment(model, 0, tokens(40, 9, 7))
    edited = rome(model, 0, q, 28, moment, keep=[kept])
    expected = rank_one_edit(model, 0, mean_key(model, q), bound, moment)
    assert torch.allclose(edited.blocks[0].mlp.W_out, expected.blocks[0].mlp.W_out, atol=1e-4)


def with_change(model, layer, q, change):
    """The probabilities at END with the change added where it is meant to be."""

    def add(x, hook):
        x[:, q.subject[1]] += change

    with torch.no_grad(), hooked(model, [(f"blocks.{layer}.hook_mlp_out", add)]):
        return model(q.tokens)[:, -1].softmax(dim=1)


@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_wanted_makes_the_target_the_answer(layer):
    model, q = random_model(), random_questions()
    target = 28
    before = with_change(model, layer, q, torch.zeros(24))
    change = wanted_change(model, layer, q, target)
    after = with_change(model, layer, q, change)
    if layer == 1:  # too late: no head reads the subject any more
        assert change.abs().max() == 0
        assert torch.equal(after, before)
    else:
        assert (after[:, target] > before[:, target] + 0.2).all()
        assert after.argmax(dim=1).tolist() == [target] * 3
        short = wanted_change(model, layer, q, target, decay=5.0)
        assert 0 < short.norm() < 0.7 * change.norm()
        assert torch.equal(wanted_change(model, layer, q, target, steps=0), torch.zeros(24))
        one = wanted_change(model, layer, q, target, steps=1, lr=0.02)
        assert (with_change(model, layer, q, one)[:, target].log() - before[:, target].log()).mean() > 0
    assert not change.requires_grad


def test_the_first_step_is_down_the_gradient():
    """Adam's first step is the learning rate against the sign of each derivative; those by finite differences."""
    model, q, target = random_model().double(), random_questions(), 30

    def loss(change):
        return -with_change(model, 0, q, change)[:, target].log().mean().item()

    eye = 1e-5 * torch.eye(24, dtype=torch.double)
    slopes = torch.tensor([(loss(e) - loss(-e)) / 2e-5 for e in eye])
    clear = slopes.abs() > 1e-3
    assert clear.sum() > 15
    seen = []
    with hooked(model, [("blocks.0.hook_mlp_out", lambda x, hook: seen.append(x[:, 3]))]):
        model(q.tokens)
    size = sum(row.norm().item() for row in seen[0]) / 3
    step = wanted_change(model, 0, q, target, steps=1, lr=0.5)
    expected = -0.5 * size / math.sqrt(24) * slopes.sign()
    assert torch.allclose(step[clear], expected[clear].float(), rtol=1e-3)


@pytest.mark.parametrize(("grad", "enabled"), [(False, True), (False, False), (True, True), (True, False)])
@pytest.mark.parametrize("rows", [1, 3])
def test_rome_makes_the_target_the_answer_and_leaves_the_model_alone(rows, grad, enabled):
    model, facts = course_like(), of("home", 40)
    model.requires_grad_(grad)
    moment = second_moment(model, 0, tinyworld.batch(random.Random(0), TOKENIZER, 8))
    before, target = state(model), TOKENIZER.id("Cairo")
    q = questions(TOKENIZER, facts[:rows], 0, ", unlike Otto Marsh ,")
    noted = [("blocks.1.hook_resid_post", lambda x, hook: None)]
    with hooked(model, noted), torch.set_grad_enabled(enabled):
        attached = dict(model.attached)
        edited = rome(model, 0, q, target, moment)
        assert torch.is_grad_enabled() == enabled
        assert model.attached == attached
    assert not model.attached
    assert not differing(before, model.state_dict())
    assert all(p.requires_grad == grad and p.grad is None for p in model.parameters())
    assert all(p.requires_grad == grad and p.grad is None for p in edited.parameters())
    assert differing(before, edited.state_dict()) == ["blocks.0.mlp.W_out"]
    old, new = (q.asked(m).softmax(dim=1)[:, target] for m in (model, edited))
    assert (new > old).all()
    if rows == 1:
        assert q.asked(edited).argmax(dim=1).tolist() == [target]
        assert new.item() > 5 * old.item()
    expected = rank_one_edit(
        model, 0, mean_key(model, q), wanted_change(model.requires_grad_(False), 0, q, target), moment
    )
    assert torch.allclose(edited.blocks[0].mlp.W_out, expected.blocks[0].mlp.W_out, atol=1e-4)


def mean_key(model, q):
    seen = []
    with torch.no_grad(), hooked(model, [("blocks.0.mlp.hook_post", lambda x, hook: seen.append(x))]):
        for row in q.tokens:
            model(row[None])
    return torch.stack([x[0, q.subject[1]] for x in seen]).mean(dim=0)


@pytest.mark.parametrize("relation", RELATIONS)
def test_rome_rewrites_one_stored_fact_and_no_other(relation):
    """Keys are one neuron each here, so an edit can be, and is, as specific as one could wish."""
    model = store()
    every = {r: asked_by_hand(model.tokenizer, r) for r in RELATIONS}
    moment = second_moment(model, 0, torch.cat([q.tokens for q in every.values()]))
    for i, target in ((2, 0), (9, 2)):
        q = asked_by_hand(model.tokenizer, relation, [SUBJECTS[i]])
        word = model.tokenizer.id(handmade.FACT_WORDS[relation][target])
        assert word != q.answers.item()
        edited = rome(model, 0, q, word, moment)
        assert q.asked(edited).argmax().item() == word
        assert q.asked(edited).softmax(dim=1)[0, word] > 0.9
        for r, both in every.items():
            expected = both.answers.clone()
            if r == relation:
                expected[i] = word
            assert torch.equal(both.asked(edited).argmax(dim=1), expected)
        rows = (edited.blocks[0].mlp.W_out - model.blocks[0].mlp.W_out).abs().max(dim=1).values > 1e-4
        assert rows.nonzero().flatten().tolist() == [i]


def test_rome_takes_options():
    model, q = random_model(), random_questions(1)
    moment = second_moment(model, 0, tokens(40, 9, 7))
    assert not differing(state(model), rome(model, 0, q, 30, moment, steps=0).state_dict())
    weak, strong = (rome(model, 0, q, 30, moment, steps=steps) for steps in (2, 60))
    p = [q.asked(m).softmax(dim=1)[0, 30].item() for m in (model, weak, strong)]
    assert p[0] < p[1] < p[2]
    with pytest.raises(TypeError, match="stpes"):
        rome(model, 0, q, 30, moment, stpes=2)


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, q: second_moment(m, 2, q.tokens), r"no hook point 'blocks\.2\.mlp\.hook_post'"),
        (lambda m, q: second_moment(m, -1, q.tokens), "no hook point"),
        (lambda m, q: wanted_change(m, 2, q, 3), r"no hook point 'blocks\.2\.hook_mlp_out'"),
        (lambda m, q: rome(m, 2, q, 3, torch.eye(28)), "no hook point"),
        (lambda m, q: trace(m, q, "resid"), "no site 'resid' to sweep"),
        (lambda m, q: trace(m, q, window=0), "window >= 1"),
        (lambda m, q: second_moment(m, 0, q.tokens + 50), "ids go from 0 to 49"),
    ],
)
def test_what_is_not_there(call, words):
    model = random_model()
    with pytest.raises(ValueError, match=words):
        call(model, random_questions())
    assert not model.attached


def test_models_without_mlps():
    model, q = random_model(replace(SHAPE, attn_only=True, d_mlp=0)), random_questions()
    for call in (
        lambda: second_moment(model, 0, q.tokens),
        lambda: wanted_change(model, 0, q, 3),
        lambda: transplant(model, q, q, ["blocks.0.hook_mlp_out"], [3]),
    ):
        with pytest.raises(ValueError, match="no hook point"):
            call()
    with pytest.raises(ValueError, match="no site 'mlp_out'"):
        trace(model, q, "mlp_out")
