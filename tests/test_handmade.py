"""The hand-wired models: right on every input of the right form, broken by removing any part of their circuit, no other."""

import itertools
import random
import re

import pytest
import torch

from interp_edu import handmade, tinyworld
from interp_edu.handmade import (
    circuit_free,
    fact_model,
    gate_model,
    induction_model,
    ioi_model,
    shifted_induction_model,
)
from interp_edu.hooks import hooked, run_with_cache


def remove(component):
    """A hook that takes a head's or an MLP's output away."""
    layer, head = re.fullmatch(r"(?:L(\d)H(\d)|MLP(\d))", component).group(1, 2)
    if layer is None:
        return (f"blocks.{component[3]}.hook_mlp_out", lambda x, hook: torch.zeros_like(x))

    def zero(z, hook):
        z[:, :, int(head)] = 0

    return (f"blocks.{layer}.attn.hook_z", zero)


def right(model, cases):
    """For each (tokens, answer): whether the answer is the one word with the highest logit."""
    by_length = {}
    for tokens, answer in cases:
        by_length.setdefault(tokens.shape[1], []).append((tokens, answer))
    logits = torch.cat([model(torch.cat([tokens for tokens, _ in group]))[:, -1] for group in by_length.values()])
    answers = torch.tensor([answer for group in by_length.values() for _, answer in group])
    best = logits.max(dim=-1)
    alone = (logits == best.values[:, None]).sum(dim=-1) == 1
    return (best.indices == answers) & alone


def induction_cases(model):
    """All sequences of up to four different letters of the first five, then one of them but the last; and 500 longer ones."""
    rng, cases = random.Random(0), []
    rows = [p for n in range(2, 5) for p in itertools.permutations(handmade.LETTERS[:5], n)]
    rows += [rng.sample(handmade.LETTERS, rng.randint(5, 12)) for _ in range(500)]
    for row in rows:
        i = rng.randrange(len(row) - 1)
        cases.append((model.tokenizer.encode(" ".join([*row, row[i]])), model.tokenizer.id(row[i + 1])))
    return cases


def shifted_induction_cases(model):
    """The same, but that the letter comes again at least three positions later: nearer ones this model cannot see."""
    rng, cases = random.Random(0), []
    rows = [p for n in range(3, 5) for p in itertools.permutations(handmade.LETTERS[:5], n)]
    rows += [rng.sample(handmade.LETTERS, rng.randint(5, 12)) for _ in range(500)]
    for row in rows:
        i = rng.randrange(len(row) - 2)
        cases.append((model.tokenizer.encode(" ".join([*row, row[i]])), model.tokenizer.id(row[i + 1])))
    return cases


def ioi_cases(model):
    rng = random.Random(0)
    sentences = [tinyworld.indirect_object(rng, held_out=i % 2 == 0) for i in range(1000)]
    return [(model.tokenizer.encode(s.prompt()), model.tokenizer.id(s.answer)) for s in sentences]


def fact_cases(model):
    """All stored facts with every choice of no, one or two words before and between."""
    words = list(itertools.chain.from_iterable(itertools.product(handmade.FACT_FILLER, repeat=n) for n in range(2)))
    return [
        (model.tokenizer.encode(" ".join([*before, first, last, *between, relation])), model.tokenizer.id(answer))
        for (first, last, relation), answer in handmade.stored_facts().items()
        for before, between in itertools.product(words, words)
    ]


CASES = {
    induction_model: induction_cases,
    shifted_induction_model: shifted_induction_cases,
    ioi_model: ioi_cases,
    fact_model: fact_cases,
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_solves_its_task_with_its_circuit_and_with_nothing_else(make):
    wired = make()
    cases = CASES[make](wired.model)
    assert right(wired.model, cases).all()
    for component in wired.nodes:
        with hooked(wired.model, [remove(component)]):
            share = right(wired.model, cases).float().mean()
        relations = len([node for node in wired.nodes if node.startswith("L1H")]) if make is fact_model else 1
        expected = 1 - 1 / relations if component.startswith("L1H") else 0  # a reader serves its own relation only
        assert share == pytest.approx(expected, abs=1e-6), component
    cfg = wired.model.cfg
    others = {f"L{layer}H{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)}
    others |= set() if cfg.attn_only else {f"MLP{layer}" for layer in range(cfg.n_layers)}
    others -= set(wired.nodes)
    assert set(wired.idle) <= others
    with hooked(wired.model, [remove(component) for component in others]):
        assert right(wired.model, cases).all()


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_the_control_has_no_circuit(make):
    wired = make()
    for seed in range(3):
        control = circuit_free(wired, seed)
        assert right(control, CASES[make](control)[::5]).float().mean() < 0.4
        for (name, a), b in zip(wired.model.named_parameters(), control.parameters(), strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a.norm(), b.norm(), rtol=1e-3), name
            assert not name.startswith("blocks.") or a.norm() == 0 or not torch.equal(a, b)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_the_circuit_is_described_as_it_is_wired(make):
    """An edge's sender writes something other than zero into what its receiver's input reads, and idle parts do not."""
    wired = make()
    p, cfg = wired.model.state_dict(), wired.model.cfg

    def writes(name):
        if name == "embed":
            return torch.cat([p["embed.W_E"], p["pos_embed.W_pos"]])
        layer, head = re.findall(r"\d", name) if "H" in name else (name[3], None)
        return p[f"blocks.{layer}.attn.W_O"][int(head)] if head else p[f"blocks.{layer}.mlp.W_out"]

    def reads(name, side):
        if name == "logits":
            return p["unembed.W_U"]
        if side == "mlp":
            return p[f"blocks.{name[3]}.mlp.W_in"]
        layer, head = re.findall(r"\d", name)
        return p[f"blocks.{layer}.attn.W_{side.upper()}"][int(head)]

    def order(name):  # attention comes before the MLP of its layer
        return (
            -1 if name == "embed" else 99 if name == "logits" else 2 * int(re.search(r"\d", name)[0]) + ("MLP" in name)
        )

    for edge in wired.edges:
        assert (writes(edge.sender) @ reads(edge.receiver, edge.input)).abs().max() > 0, edge
        assert order(edge.sender) < order(edge.receiver)
    assert {name for edge in wired.edges for name in (edge.sender, edge.receiver)} - {"embed", "logits"} == set(
        wired.nodes
    )
    parts = {*wired.nodes, *wired.idle}
    drawn = {(edge.sender, edge.receiver, edge.input) for edge in wired.edges}
    for sender, receiver in itertools.product(parts, wired.nodes):
        for side in ["mlp"] if "MLP" in receiver else "qkv":
            if order(sender) < order(receiver) and (writes(sender) @ reads(receiver, side)).abs().max() > 0:
                assert (sender, receiver, side) in drawn
    for name in parts:
        assert ((writes(name) @ p["unembed.W_U"]).abs().max() > 0) == ((name, "logits", "logits") in drawn)
    assert wired.heads() == [(int(n[1]), int(n[3])) for n in wired.nodes if "H" in n]
    assert all(0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads for layer, head in wired.heads())


@pytest.mark.parametrize(("inputs", "needed"), [(1, 1), (2, 1), (2, 2), (3, 2), (6, 4)])
def test_gates_count_their_inputs(inputs, needed):
    wired = gate_model(inputs, needed, gain=3.0)
    t = wired.model.tokenizer
    rows = list(itertools.product([0, 1], repeat=inputs))
    tokens = torch.tensor([[t.bos, *(t.id(str(bit)) for bit in row), t.id("=")] for row in rows])
    expected = [3 if sum(row) >= needed else -3 for row in rows]

    def difference():
        logits = wired.model(tokens)[:, -1]
        return (logits[:, t.id("yes")] - logits[:, t.id("no")]).tolist()

    assert difference() == pytest.approx(expected, abs=1e-4)
    with hooked(wired.model, [remove(next(iter(wired.idle)))]):
        assert difference() == pytest.approx(expected, abs=1e-4)
    for i in range(inputs):  # a removed input counts as 0
        with hooked(wired.model, [remove(f"L0H{i}")]):
            assert difference() == pytest.approx([3 if sum(row) - row[i] >= needed else -3 for row in rows], abs=1e-4)


def test_heads_attend_as_their_roles_say():
    wired = ioi_model()
    rng, tokenizer = random.Random(1), wired.model.tokenizer
    for _ in range(50):
        s = tinyworld.indirect_object(rng)
        at = {role: position + 1 for role, position in s.roles.items()}  # after the first token
        logits, cache = run_with_cache(wired.model, tokenizer.encode(s.prompt()))
        duplicate, inhibition, mover = (cache["pattern", layer][0, head] for layer, head in wired.heads())
        assert duplicate[at["S2"], at["S1"]] > 0.999
        assert inhibition[at["END"], at["S2"]] > 0.999
        assert mover[at["END"], at["IO"]] > 0.999
        io, subject = tokenizer.id(s.answer), tokenizer.id(s.words[s.roles["S2"]])
        assert (logits[0, -1, io] - logits[0, -1, subject]).item() == pytest.approx(10, abs=1e-4)
    third = tinyworld.indirect_object(rng, third=True)  # nobody comes twice: all three names alike
    logits = wired.model(tokenizer.encode(third.prompt()))[0, -1]
    names = [logits[tokenizer.id(third.words[third.roles[role]])].item() for role in "ABC"]
    assert names == pytest.approx([10 / 3] * 3, abs=1e-4)


def test_a_new_letter_and_several_matches():
    model = induction_model().model
    t = model.tokenizer
    assert model(t.encode("a b c d"))[0, -1].abs().max() < 1e-9  # nothing to go by
    logits = model(t.encode("a b c a d e a"))[0, -1]
    assert logits[t.id("b")].item() == pytest.approx(5, abs=1e-4)
    assert logits[t.id("d")].item() == pytest.approx(5, abs=1e-4)


@pytest.mark.parametrize("shift", [1, 2, 3, 5])
def test_the_shifted_model_is_the_same_function_by_another_route(shift):
    """Where the nearest match is `1 + shift` back or more, its logits are the other model's; nearer ones it passes by."""
    usual, shifted = induction_model(), shifted_induction_model(shift)
    t, rng = usual.model.tokenizer, random.Random(0)
    assert t.vocab == shifted.model.tokenizer.vocab
    for _ in range(100):
        row = rng.sample(handmade.LETTERS, rng.randint(1 + shift, 12))
        tokens = t.encode(" ".join([*row, *row][:15]))
        assert torch.allclose(shifted.model(tokens), usual.model(tokens), atol=1e-5)
    for distance in range(2, 9):  # A B ... A, and a letter that is new
        row = [*handmade.LETTERS[:distance], "a", "l"]
        logits = shifted.model(t.encode(" ".join(row)))[0]
        expected = torch.zeros(len(t))
        expected[t.id("b")] = 10.0 if distance >= 1 + shift else 0.0
        assert torch.allclose(logits[distance + 1], expected, atol=1e-5)
        assert logits[-1].abs().max() < 1e-5
    twice = shifted.model(t.encode("a b c d e f a g c d e f a"))[0, -1]  # several matches share
    assert twice[[t.id("b"), t.id("g")]].tolist() == pytest.approx([5, 5], abs=1e-4)


@pytest.mark.parametrize(("shift", "n_ctx"), [(1, 16), (2, 9), (3, 16)])
def test_the_shifted_model_looks_where_it_says(shift, n_ctx):
    wired = shifted_induction_model(shift, n_ctx=n_ctx, gain=4.0)
    tokens = wired.model.tokenizer.encode("a b c d a b c d")
    logits, cache = run_with_cache(wired.model, tokens)
    for head, back in ((0, shift), (1, 1 + shift)):
        looks = cache["pattern", 0][0, head].argmax(dim=-1).tolist()
        assert looks == [max(p - back, 0) for p in range(9)]  # the first token, where there is none
        assert cache["pattern", 0][0, head].max(dim=-1).values.min() > 0.999
    for p in range(5, 9):
        assert cache["pattern", 1][0, 0, p, p - 4 + 1 + shift] > 0.999
    assert (cache["pattern", 1][0, 0, :5, 0] > 0.999).all()  # nothing has come twice yet: it rests
    assert logits[0, 5:].max(dim=-1).values.tolist() == pytest.approx([4.0] * 4, abs=1e-4)
    assert wired.heads() == [(0, 0), (0, 1), (1, 0)]


def test_neurons_are_keys_and_values():
    """Each subject has one neuron, which fires at its last word alone."""
    wired = fact_model()
    t, seen = wired.model.tokenizer, set()
    for first, last in itertools.product(handmade.FACT_FIRST, handmade.FACT_LAST):
        _, cache = run_with_cache(wired.model, t.encode(f"old {first} {last} is well home"))
        fires = cache["post", 0][0].nonzero()
        assert len(fires) == 1
        assert fires[0, 0] == 3
        seen.add(int(fires[0, 1]))
    assert len(seen) == 16
