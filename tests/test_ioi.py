"""Indirect objects: prompts by hand, path patching against a forward pass written anew, a wired circuit as truth."""

import itertools
import math
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from interp_edu import tinyworld
from interp_edu.circuits import Circuit, agreement, completeness, faithfulness, minimality
from interp_edu.handmade import circuit_free, gate_model, induction_model, ioi_model
from interp_edu.hooks import hooked
from interp_edu.ioi import (
    LOOKS,
    TEMPLATES,
    Knockout,
    PathPatching,
    Prompts,
    attention_by_role,
    backups,
    classified,
    copy_scores,
    discover,
    performance,
    prompts,
)
from interp_edu.metrics import Metric, logit_difference
from interp_edu.tinyworld import TOKENIZER
from interp_edu.transformer import Config
from tests.test_transformer import SHAPE, random_model, tokens

WIRED = ioi_model()
TALL = Config(**{**vars(SHAPE), "n_layers": 3})
KINDS = [
    {},
    {"attn_only": True, "d_mlp": 0},
    {"normalization_type": None, "act_fn": "relu"},
    {"normalization_type": "LNPre", "act_fn": "gelu"},
]


def course_like(seed=0, **change):
    """A random model that reads tinyworld's words."""
    small = {"n_layers": 2, "d_model": 24, "d_head": 5, "n_heads": 3, "d_mlp": 9}
    return random_model(Config(**{**vars(tinyworld.CONFIG), **small, **change}), seed)


class Pieces:
    """Like GPT-2's tokenizer: a word holds the space before it; names that it does not know it takes letter by letter."""

    def __init__(self, known):
        self.known, self.vocab = known, {"<bos>": 0}
        self.bos = 0

    def pieces(self, text):
        for word in re.findall(r" ?\w+|[^\w\s]|\s", text):
            yield from [word] if word.strip() in self.known or word.islower() or word[0] != " " else word

    def ids(self, text):
        return [self.vocab.setdefault(piece, len(self.vocab)) for piece in self.pieces(text)]

    def id(self, word):
        ids = self.ids(word)
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens")
        return ids[0]

    def encode(self, text):
        return torch.tensor([[self.bos, *self.ids(text)]])


# Prompts -----------------------------------------------------------------------------------------

FIVE = ["Mary", "John", "Tom", "Anna", "James"]
PLAIN = "When {A} and {B} left , {S} gave a {object} to"


def check_by_words(p, words_of, names=tinyworld.NAMES):
    """What every row must be, read off its words."""
    for i, text in enumerate(p.texts):
        words = ["<bos>", *words_of(text)]
        row = {role: at[i].item() for role, at in p.roles.items()}
        assert row["END"] == len(words) - 1
        assert words[row["IO"]] != words[row["S1"]] == words[row["S2"]]
        assert {words[row["IO"]], words[row["S1"]]} <= set(names)
        assert words.count(words[row["S1"]]) == 2
        assert words.count(words[row["IO"]]) == 1
        assert row["S1"] < row["S2"] < row["END"]
        assert row["IO"] < row["S2"]
        assert row["S1+1"] == row["S1"] + 1
        assert (row["S1"] < row["IO"]) == (i % 2 == 0)  # both orders by turns


def test_a_sentence_of_each_order_by_hand():
    p = prompts(TOKENIZER, 2, templates=["When {A} and {B} went to the {place}, {S} gave a {object} to"], seed=3)
    (a, b), (c, d) = (re.match(r"When (\w+) and (\w+)", text).groups() for text in p.texts)
    # <|endoftext|> When A and B went to the place , S gave a thing to
    assert p.tokens.shape == (2, 15)
    assert {role: at.tolist() for role, at in p.roles.items()} == {
        "IO": [4, 2],
        "S1": [2, 4],
        "S1+1": [3, 5],
        "S2": [10, 10],
        "END": [14, 14],
    }
    assert p.io.tolist() == [TOKENIZER.id(b), TOKENIZER.id(c)]
    assert p.s.tolist() == [TOKENIZER.id(a), TOKENIZER.id(d)]
    assert f", {a} gave" in p.texts[0]
    assert f", {d} gave" in p.texts[1]
    assert p.tokens[:, 0].tolist() == [TOKENIZER.bos] * 2
    assert TOKENIZER.decode(p.tokens[0, 1:]) == p.texts[0]


def test_what_holds_for_all_prompts():
    p = prompts(TOKENIZER, 300)
    check_by_words(p, lambda text: re.findall(r"\w+|[^\w\s]", text))
    assert p.tokens.shape[0] == len(p.texts) == 300
    assert len(set(p.texts)) > 250
    assert set(p.names) == {TOKENIZER.id(name) for name in tinyworld.NAMES}
    for i, text in enumerate(p.texts):
        end = p.roles["END"][i] + 1
        assert TOKENIZER.decode(p.tokens[i, 1:end]) == text
        assert p.tokens[i, end:].eq(TOKENIZER.bos).all()
        names = [TOKENIZER.id(word) for word in re.findall(r"\w+", text) if word in tinyworld.NAMES]
        assert sorted(names) == sorted([p.io[i].item(), *[p.s[i].item()] * 2])
    assert len({len(text.split()) for text in p.texts}) > 1
    assert all(template.count("{S}") == 1 and template.endswith("to") for template in TEMPLATES)
    assert not any(template.startswith("{A}") or " ," in template for template in TEMPLATES)


def test_the_same_seed_gives_the_same_prompts():
    for make in (lambda seed: prompts(TOKENIZER, 20, seed=seed), lambda seed: prompts(TOKENIZER, 5, seed=seed)):
        one, same, other = make(1), make(1), make(2)
        assert one.texts == same.texts != other.texts
        assert torch.equal(one.tokens, same.tokens)
    assert prompts(TOKENIZER, 5, seed=1).texts == prompts(TOKENIZER, 20, seed=1).texts[:5]
    assert prompts(TOKENIZER, 5).texts == prompts(TOKENIZER, 5, seed=0).texts


def test_padding_changes_nothing_before_it():
    model, p = course_like(), prompts(TOKENIZER, 12)
    assert len(set(p.roles["END"].tolist())) > 2
    logits = p.at("END", model(p.tokens))
    alone = torch.stack([model(TOKENIZER.encode(text))[0, -1] for text in p.texts])
    assert torch.allclose(logits, alone, atol=1e-4)
    difference = (alone.gather(1, p.io[:, None]) - alone.gather(1, p.s[:, None])).mean().item()
    assert p.difference(model(p.tokens)).item() == pytest.approx(difference, abs=1e-4)
    both = torch.stack([alone[i, [p.io[i], p.s[i]]].mean() for i in range(12)])
    assert p.lift(model(p.tokens)).item() == pytest.approx((both - alone.mean(dim=1)).mean().item(), abs=1e-4)


def test_metrics_of_several_patches_at_once():
    """[patch, batch, choice], as `Patching` asks for."""
    p = prompts(TOKENIZER, 4)
    x = torch.randn(3, 4, len(TOKENIZER), generator=torch.Generator().manual_seed(0))
    lift = p.lift.of(x)
    assert lift.shape == (3, 4)
    names = (x[2, 1, p.io[1]] + x[2, 1, p.s[1]]) / 2
    assert lift[2, 1].item() == pytest.approx((names - x[2, 1].mean()).item(), abs=1e-6)
    assert torch.allclose(p.lift.of(x + 7), lift, atol=1e-5)  # as the softmax, blind to what all words share


def test_what_stands_at_a_role():
    p = prompts(TOKENIZER, 6)
    x = torch.arange(6 * p.tokens.shape[1] * 2).view(6, -1, 2)
    assert p.at("S2", x).tolist() == [x[i, j].tolist() for i, j in enumerate(p.roles["S2"].tolist())]
    assert torch.equal(p.at("S2", p.tokens), p.s)


def test_other_names_in_the_same_sentences():
    p = prompts(TOKENIZER, 40)
    swapped = p.with_names(S2=p.io)
    assert torch.equal(p.at("S2", swapped), p.io)
    assert (swapped != p.tokens).sum(dim=1).tolist() == [1] * 40
    all_swapped = p.with_names(IO=p.s, S1=p.io, S2=p.io)
    assert [p.at(role, all_swapped).tolist() for role in ("IO", "S1", "S2")] == [x.tolist() for x in (p.s, p.io, p.io)]
    turned = replace(p, tokens=all_swapped)
    assert torch.equal(turned.io, p.s)
    assert torch.equal(turned.s, p.io)
    assert torch.equal(p.tokens, prompts(TOKENIZER, 40).tokens)  # left as it was
    with pytest.raises(KeyError, match="S3"):
        p.with_names(S3=p.io)


@pytest.mark.parametrize("names", [None, FIVE])
def test_three_names_that_nobody_knows(names):
    p = prompts(TOKENIZER, 40, names=names)
    drawn = [p.abc(seed) for seed in range(5)]
    for other in drawn:
        three = torch.stack([p.at(role, other) for role in ("IO", "S1", "S2")])
        for row, io, s in zip(three.T.tolist(), p.io.tolist(), p.s.tolist(), strict=True):
            assert len({*row, io, s}) == 5
            assert {*row, io, s} <= set(p.names)
        where = torch.zeros(p.tokens.shape, dtype=torch.bool)
        for role in ("IO", "S1", "S2"):
            where[torch.arange(40), p.roles[role]] = True
        assert torch.equal(other != p.tokens, where)
    assert torch.equal(p.abc(), p.abc(0))
    assert not torch.equal(drawn[0], drawn[1])


def test_a_tokenizer_whose_words_hold_the_space_before_them():
    tokenizer = Pieces(FIVE)
    p = prompts(tokenizer, 50, names=FIVE)
    check_by_words(p, lambda text: [piece.strip() for piece in tokenizer.pieces(text)], FIVE)
    assert set(p.names) == {tokenizer.id(" " + name) for name in FIVE}
    for i, text in enumerate(p.texts):
        assert p.tokens[i, : p.roles["END"][i] + 1].tolist() == tokenizer.encode(text)[0].tolist()
    with pytest.raises(ValueError, match="' Lucy' is 5 tokens"):
        prompts(tokenizer, 2, names=[*FIVE, "Lucy"])
    # Words of several tokens in between: END comes later, and all is still found.
    later = prompts(tokenizer, 20, names=FIVE, templates=["When {A} and {B} went to Zanzibar, {S} gave Quux to"])
    check_by_words(later, lambda text: [piece.strip() for piece in tokenizer.pieces(text)], FIVE)
    assert later.roles["S2"].tolist() == [7 + 9 + 1] * 20  # `Zanzibar` is a space and eight letters
    assert later.roles["END"].tolist() == [17 + 1 + 5 + 1] * 20
    assert torch.equal(later.at("S2", later.tokens), later.s)


@pytest.mark.parametrize(
    ("template", "names", "words"),
    [
        ("When {A} and {B} left , he gave it to", None, r"\{S\}"),
        ("When {A} and {B} left , the book went to {S}", None, "words after"),
        ("When {A} and {B} left , the book went to {S} ", None, "words after"),
        ("{A} saw {B} , and {S} gave it to", None, "needs a word"),
        ("When {B} saw {A} , {S} gave it to", None, "in this order"),
        ("When {S} saw {A} and {B} , it went to", None, "in this order"),
        ("When {A} left , {S} gave it to", None, r"\{B\}"),
        ("When {A} saw {B} , {S} and {A} gave it to", None, "twice and the other name once"),
        ("When {A} saw {B} , {S} and {S} gave it to", None, "twice and the other name once"),
        (PLAIN, FIVE[:4], "five different ones"),
        (PLAIN, [*FIVE[:4], "Mary"], "five different ones"),
        (PLAIN, [], "five different ones"),
        (PLAIN, [*FIVE, "Silver Tower"], "no word 'Silver Tower'"),
        (PLAIN, [*FIVE, "Mari"], "no word 'Mari'; the nearest are .*Mary"),
        ("When {A} zigged {B} , {S} gave it to", None, "no word 'zigged'"),
    ],
)
def test_prompts_that_cannot_be(template, names, words):
    with pytest.raises(ValueError, match=words):
        prompts(TOKENIZER, 4, templates=[template], names=names)
    with pytest.raises(ValueError, match=words):
        prompts(TOKENIZER, 200, templates=[PLAIN, template], names=names)  # one bad one among others


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"templates": ["When {A} and {B} left at {time} , {S} gave it to"]}, "time"),
        ({"templates": []}, "template"),
        ({"n": 0}, "at least"),
        ({"tokenizer": Pieces(FIVE), "names": FIVE, "templates": ["When {A} and ({B}) left , {S} gave it to"]}, "When"),
    ],
    ids=["field", "none", "empty", "space"],
)
def test_other_prompts_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        prompts(**{"tokenizer": TOKENIZER, "n": 4, **settings})


def test_repeated_names_count_once():
    p = prompts(TOKENIZER, 30, names=[*FIVE, *FIVE])
    assert sorted(p.names) == sorted(TOKENIZER.id(name) for name in FIVE)
    p.abc()


# How well a model does ---------------------------------------------------------------------------


def test_performance_by_hand():
    # io is token 1 in row 0 and 2 in row 1, s the other; END is position 3 and 2.
    rows = torch.tensor([[0, 1, 2, 3, 0], [0, 1, 2, 3, 0]])
    roles = {"IO": torch.tensor([1, 2]), "S1": torch.tensor([2, 1]), "END": torch.tensor([3, 2])}
    p = Prompts(rows, roles, (1, 2), ["", ""])
    logits = torch.full((2, 5, 4), 9.0)
    logits[0, 3] = torch.tensor([5.0, 4, 1, 0])  # io above s, but not first
    logits[1, 2] = torch.tensor([0.0, 2, 1, 0])  # s first
    small = Config(1, 4, 5, 1, 1, 4, attn_only=True, normalization_type=None)
    model = random_model(small)
    model.unembed.W_U.copy_(torch.eye(4))
    model.unembed.b_U.zero_()
    with hooked(model, [("blocks.0.hook_resid_post", lambda x, hook: logits)]):
        found = performance(model, p)
        logits[0, 3, 1] = 6.0
        first = performance(model, p)["io_first"]
    e = [[math.exp(x) for x in row] for row in ([5, 4, 1, 0], [0, 2, 1, 0])]
    assert found == {
        "logit_difference": pytest.approx((3 - 1) / 2),
        "io_above_s": 0.5,
        "io_first": 0.0,
        "p_io": pytest.approx((e[0][1] / sum(e[0]) + e[1][2] / sum(e[1])) / 2),
    }
    assert first == 0.5


def test_performance_of_the_wired_model():
    found = performance(WIRED.model, prompts(TOKENIZER, 50))
    assert found["logit_difference"] == pytest.approx(10, abs=1e-4)
    assert found["io_above_s"] == found["io_first"] == 1
    assert found["p_io"] == pytest.approx(math.exp(10) / (math.exp(10) + len(TOKENIZER) - 1), abs=1e-5)


# Path patching -----------------------------------------------------------------------------------


def forward(model, rows, put=None):
    """The model written anew: its activations, each after what `put` says becomes of it."""
    cfg, p, put = model.cfg, model.state_dict(), put or {}
    act = {"gelu_new": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu, "relu": F.relu}[cfg.act_fn]
    seen = {}

    def place(name, x):
        seen[name] = put[name](x) if name in put else x
        return seen[name]

    def norm(x, name):
        if cfg.normalization_type is None:
            return x
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + cfg.eps).sqrt()
        return x * p[f"{name}.w"] + p[f"{name}.b"] if f"{name}.w" in p else x

    x = p["embed.W_E"][rows] + p["pos_embed.W_pos"][: rows.shape[1]]
    later = torch.ones(rows.shape[1], rows.shape[1]).triu(1).bool()
    for i in range(cfg.n_layers):
        at = f"blocks.{i}"
        x = place(("resid", i), x)
        y = norm(x, f"{at}.ln1")
        q, k, v = (
            place(
                (s, i), torch.einsum("bpd,hde->bphe", y, p[f"{at}.attn.W_{s.upper()}"]) + p[f"{at}.attn.b_{s.upper()}"]
            )
            for s in "qkv"
        )
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(cfg.d_head)
        pattern = place(("pattern", i), scores.masked_fill(later, -math.inf).softmax(-1))
        z = place(("z", i), torch.einsum("bhqk,bkhe->bqhe", pattern, v))
        x = x + torch.einsum("bqhe,hed->bqd", z, p[f"{at}.attn.W_O"]) + p[f"{at}.attn.b_O"]
        if not cfg.attn_only:
            hidden = act(norm(x, f"{at}.ln2") @ p[f"{at}.mlp.W_in"] + p[f"{at}.mlp.b_in"])
            x = x + place(("mlp", i), hidden @ p[f"{at}.mlp.W_out"] + p[f"{at}.mlp.b_out"])
    seen["resid", cfg.n_layers] = x
    seen["logits"] = norm(x, "ln_final") @ p["unembed.W_U"] + p["unembed.b_U"]
    return seen


def by_hand(x, senders, receivers=None, at=None):
    """The three runs of path patching."""
    clean, corrupted = forward(x.model, x.clean), forward(x.model, x.corrupted)

    def mixed(name, layer, own):
        """`own`, but at the senders what the corrupted run has."""
        out = own.clone()
        for sender, head in senders:
            if sender == layer and (head is None) == (name == "mlp"):
                for row in range(len(out)):
                    where = slice(None) if at is None else at[row]
                    there = (row, where) if head is None else (row, where, head)
                    out[there] = corrupted[name, layer][there]
        return out

    put = {}
    for i in range(x.model.cfg.n_layers):
        put["z", i] = lambda own, i=i: mixed("z", i, clean["z", i])
        put["mlp", i] = lambda own, i=i: mixed("mlp", i, clean["mlp", i] if x.frozen else own)
    heard = forward(x.model, x.clean, put)
    if receivers is not None:
        put = {}
        for layer, side in {(layer, side) for layer, _, side in receivers}:
            heads = [head for l, head, s in receivers if (l, s) == (layer, side)]
            rest = [head for head in range(x.model.cfg.n_heads) if head not in heads]

            def told(own, layer=layer, side=side, rest=rest):
                out = heard[side, layer].clone()
                out[:, :, rest] = own[:, :, rest]
                return out

            put[side, layer] = told
        heard = forward(x.model, x.clean, put)
    return (x.judge(heard["logits"]) - x.judge(clean["logits"])).item()


def experiment(change=None, frozen=False, metric=None, **kwargs):
    """A random model of three layers in float64, two sets of prompts, and the paths between them."""
    model = random_model(Config(**{**vars(TALL), **(change or {})}), **kwargs).double()
    clean, corrupted = tokens(4, 7), tokens(4, 7, seed=1)
    right, wrong, end = torch.arange(4), torch.arange(4) + 20, torch.tensor([6, 3, 5, 6])
    paths = PathPatching(model, clean, corrupted, metric or logit_difference(right, wrong, end), freeze_mlps=frozen)
    read = torch.arange(4), end
    return SimpleNamespace(
        model=model,
        clean=clean,
        corrupted=corrupted,
        end=end,
        frozen=frozen,
        paths=paths,
        judge=lambda logits: (logits[(*read, right)] - logits[(*read, wrong)]).mean(),
    )


CASES = [  # senders, receivers
    ([(0, 1)], None),
    ([(2, 2)], None),
    ([(0, 0), (0, 2), (1, 1), (2, 0)], None),
    ([(0, 1)], [(2, 0, "q")]),
    ([(1, 2)], [(2, 1, "k")]),
    ([(0, 2)], [(1, 0, "v")]),
    ([(0, 0), (1, 1)], [(2, 2, "q"), (2, 2, "k"), (2, 1, "v")]),
    ([(0, 0), (0, 1)], [(1, 0, "q"), (2, 1, "k"), (1, 2, "v"), (2, 1, "v")]),  # several layers
    ([(1, 0), (2, 0)], [(1, 1, "q"), (2, 0, "k")]),  # some come too late for some
]
MLP_CASES = [
    ([(0, None)], None),
    ([(2, None)], None),
    ([(0, None), (1, 2), (1, None)], None),
    ([(0, None)], [(1, 2, "q")]),
    ([(0, None), (0, 1)], [(2, 0, "k"), (2, 0, "v"), (1, 1, "q")]),
]


@pytest.mark.parametrize("frozen", [False, True], ids=["open", "frozen"])
@pytest.mark.parametrize("change", KINDS, ids=str)
def test_effects_are_those_of_a_forward_pass_written_anew(change, frozen):
    x = experiment(change, frozen)
    assert torch.allclose(forward(x.model, x.clean)["logits"], x.model(x.clean), atol=1e-9)
    seen = []
    for senders, receivers in CASES + ([] if x.model.cfg.attn_only else MLP_CASES):
        for at in (None, torch.tensor([2, 0, 5, 3])):
            expected = by_hand(x, senders, receivers, at)
            assert x.paths.effect(senders, receivers, at) == pytest.approx(expected, abs=1e-9), (senders, receivers, at)
            seen.append(abs(expected))
    assert sorted(seen)[len(seen) // 4] > 1e-4  # these are no zeros


def test_the_direct_effect_is_what_the_last_layer_norm_makes_of_the_change():
    """With MLPs frozen all else stands: final_ln(stream + change), exactly."""
    x = experiment(frozen=True)
    a, b = forward(x.model, x.clean), forward(x.model, x.corrupted)
    p = x.model.state_dict()
    for layer, head in itertools.product(range(3), range(3)):
        change = (b["z", layer] - a["z", layer])[:, :, head] @ p[f"blocks.{layer}.attn.W_O"][head]
        stream = a["resid", 3] + change
        logits = F.layer_norm(stream, (24,), p["ln_final.w"], p["ln_final.b"], 1e-5) @ p["unembed.W_U"]
        expected = (x.judge(logits + p["unembed.b_U"]) - x.judge(a["logits"])).item()
        assert x.paths.effect([(layer, head)]) == pytest.approx(expected, abs=1e-9)
        at_end = x.paths.effect([(layer, head)], at=x.end)
        assert at_end == pytest.approx(expected, abs=1e-9)  # only what is written there is read
    assert x.paths.effect([(1, 1)], at=torch.tensor([0, 0, 0, 0])) == pytest.approx(0, abs=1e-12)


def test_without_layer_norm_and_mlps_direct_effects_add_up():
    x = experiment({"attn_only": True, "d_mlp": 0, "normalization_type": None})
    table, heads = x.paths.sweep(), list(itertools.product(range(3), range(3)))
    assert x.paths.effect(heads) == pytest.approx(table.sum().item(), abs=1e-5)
    assert x.paths.effect(heads[2:5]) == pytest.approx(table.flatten()[2:5].sum().item(), abs=1e-5)


@pytest.mark.parametrize("change", KINDS, ids=str)
def test_all_that_writes_together_gives_the_corrupted_run(change):
    """Where both prompts end with the same word, so that nothing but heads and MLPs tells them apart there."""
    model = random_model(Config(**{**vars(TALL), **change})).double()
    clean, corrupted = tokens(3, 6), tokens(3, 6, seed=1)
    corrupted[:, -1] = clean[:, -1]
    metric = logit_difference([1, 2, 3], [4, 5, 6])
    everything = list(itertools.product(range(3), range(3)))
    total = (metric(model(corrupted)) - metric(model(clean))).item()
    assert abs(total) > 0.01
    paths = PathPatching(model, clean, corrupted, metric)  # MLPs hear all of the heads: nothing is left to tell
    assert paths.effect(everything) == pytest.approx(total, abs=1e-9)
    if not model.cfg.attn_only:
        everything += [(layer, None) for layer in range(3)]
        assert paths.effect(everything) == pytest.approx(total, abs=1e-9)
        still = PathPatching(model, clean, corrupted, metric, freeze_mlps=True)
        assert still.effect(everything) == pytest.approx(total, abs=1e-9)
        assert still.effect(everything[:9]) != pytest.approx(total, abs=1e-3)


def test_what_is_the_same_in_both_runs_has_no_effect():
    x = experiment()
    paths = PathPatching(x.model, x.clean, x.clean, x.paths.metric)
    assert paths.sweep().abs().max() < 1e-12
    assert paths.sweep([(2, 0, "q"), (2, 0, "v")]).abs().max() < 1e-12
    assert paths.effect([(0, None)], [(2, 1, "k")]) == pytest.approx(0, abs=1e-12)
    assert x.paths.effect([]) == pytest.approx(0, abs=1e-12)
    assert x.paths.value == pytest.approx(x.judge(x.model(x.clean)).item(), abs=1e-12)


@pytest.mark.parametrize("receiver", [(0, 1, "q"), (1, 1, "k"), (2, 0, "v")])
def test_who_comes_too_late_is_not_heard(receiver):
    x = experiment()
    layer = receiver[0]
    for sender in [*itertools.product(range(layer, 3), range(3)), *((i, None) for i in range(layer, 3))]:
        assert x.paths.effect([sender], [receiver]) == pytest.approx(0, abs=1e-12)
    table = x.paths.sweep([receiver])
    assert table.shape == (3, 3)
    assert table[layer:].eq(0).all()
    assert table[:layer].ne(0).all()


def test_a_sweep_is_every_head_singly():
    x = experiment()
    at = torch.tensor([1, 0, 4, 2])
    for receivers in (None, [(2, 1, "q"), (1, 0, "v")]):
        for where in (None, at):
            table = x.paths.sweep(iter(receivers) if receivers else None, where)
            for layer, head in itertools.product(range(3), range(3)):
                expected = by_hand(x, [(layer, head)], receivers, where)
                assert table[layer, head].item() == pytest.approx(expected, abs=1e-6)


def test_the_model_is_left_as_it_was():
    x = experiment()
    before = {name: value.clone() for name, value in x.model.state_dict().items()}
    x.paths.effect([(0, 1), (1, None)], [(2, 0, "k")])
    x.paths.sweep([(1, 0, "q")])
    first = x.paths.effect([(0, 1)], [(2, 0, "k")])
    assert x.model.attached == {}
    assert all(torch.equal(value, before[name]) for name, value in x.model.state_dict().items())
    assert x.paths.effect([(0, 1)], [(2, 0, "k")]) == first  # nor are the recorded runs written into
    with pytest.raises(ValueError, match="no component"):
        x.paths.effect([(0, 9)])
    assert x.model.attached == {}
    x.model.requires_grad_()
    assert x.paths.effect([(0, 1)], [(2, 0, "k")]) == pytest.approx(first, abs=1e-9)
    assert not x.paths.sweep().requires_grad


@pytest.mark.parametrize(
    ("senders", "receivers", "words"),
    [
        ([(0, 3)], None, r"no component \(0, 3\): 3 layers of 3 heads"),
        ([(3, 0)], None, r"no component \(3, 0\)"),
        ([(-1, 0)], None, "no component"),
        ([(0, -1)], None, "no component"),
        ([(3, None)], None, "no component"),
        ([(0, 0)], [(3, 0, "q")], "no component"),
        ([(0, 0)], [(2, 3, "q")], "no component"),
        ([(0, 0)], [(2, 0, "z")], "q, k or v, not z"),
        ([(0, 0)], [(2, 0, "q"), (2, 0, "")], "q, k or v"),
        ([(0, 0)], [(2, 0, "qk")], "q, k or v, not qk"),
    ],
)
def test_what_is_not_there(senders, receivers, words):
    with pytest.raises(ValueError, match=words):
        experiment().paths.effect(senders, receivers)


@pytest.fixture
def no_type_checks():
    """As in a notebook, where nobody checks the types of arguments."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("no_type_checks")
def test_an_mlp_that_is_not_there_and_prompts_that_do_not_match():
    x = experiment(KINDS[1])
    with pytest.raises(ValueError, match="no component"):
        x.paths.effect([(0, None)])
    with pytest.raises(ValueError, match=r"clean has shape \[4, 7\], corrupted \[4, 6\]"):
        PathPatching(x.model, x.clean, x.corrupted[:, :6], x.paths.metric)
    with pytest.raises(ValueError, match=r"corrupted \[3, 7\]"):
        PathPatching(x.model, x.clean, x.corrupted[:3], x.paths.metric)


@pytest.mark.usefixtures("no_type_checks")
def test_an_mlp_has_no_queries():
    with pytest.raises(ValueError, match="None"):
        experiment().paths.effect([(0, 0)], [(1, None, "q")])


def test_a_gate_hears_its_heads_only_through_the_mlp():
    """An AND: with both bits 1 the metric is 5, with one 0 it is -5."""
    wired = gate_model()
    t = wired.model.tokenizer
    clean, metric = t.encode("1 1 ="), logit_difference(t.id("yes"), t.id("no"))
    for corrupted, falls in (("0 1 =", {0}), ("1 0 =", {1}), ("0 0 =", {0, 1})):
        paths = PathPatching(wired.model, clean, t.encode(corrupted), metric)
        assert paths.value == pytest.approx(5, abs=1e-4)
        assert paths.sweep()[0].tolist() == pytest.approx([-10.0 if i in falls else 0.0 for i in range(3)], abs=1e-4)
        assert paths.effect([(0, None)]) == pytest.approx(-10, abs=1e-4)
        still = PathPatching(wired.model, clean, t.encode(corrupted), metric, freeze_mlps=True)
        assert still.sweep().abs().max() < 1e-4
        assert still.effect([(0, None)]) == pytest.approx(-10, abs=1e-4)


# Finding the circuit -----------------------------------------------------------------------------


def true_circuit(wired):
    """The wiring between heads and to the logits."""
    true = wired.circuit
    return Circuit(true.nodes, {edge: weight for edge, weight in true.edges.items() if edge[0] != "embed"})


@pytest.mark.parametrize("gain", [10.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_discovers_the_wired_circuit_with_its_weights(gain, seed):
    wired, p = ioi_model(gain), prompts(TOKENIZER, 16, seed=seed)
    found = discover(PathPatching(wired.model, p.tokens, p.abc(seed), p.difference))
    both = agreement(found, true_circuit(wired))
    assert [(a.precision, a.recall) for a in both.values()] == [(1, 1), (1, 1)]
    assert list(found.nodes) == ["L0H0", "L1H1", "L2H2"]
    assert not found.names & set(wired.idle)
    # The difference is `gain` at first. The name mover copies other names: 0. Without the query it looks at all three
    # names, S twice among them: gain (1 - 2) / 3. Without the mark, only S2 is inhibited: gain (1 - 1) / 2.
    assert found.edges == {
        ("L2H2", "logits", ""): pytest.approx(gain, abs=1e-4),
        ("L1H1", "L2H2", "q"): pytest.approx(4 / 3 * gain, abs=1e-4),
        ("L0H0", "L1H1", "k"): pytest.approx(4 / 3 * gain, abs=1e-4),
        ("L0H0", "L1H1", "v"): pytest.approx(gain, abs=1e-4),
    }


def test_the_threshold_is_in_the_unit_of_the_metric():
    p = prompts(TOKENIZER, 8)
    paths = PathPatching(WIRED.model, p.tokens, p.abc(), p.difference)
    assert discover(paths, 9.9) == discover(paths)
    assert set(discover(paths, 10.1).edges) == set()  # nobody tells the logits that much
    weak = ioi_model(0.4)
    quiet = PathPatching(weak.model, p.tokens, p.abc(), p.difference)
    assert discover(quiet).nodes == {}
    assert discover(quiet, 0.01).names == {"L0H0", "L1H1", "L2H2"}


def test_swapping_the_giver_shows_the_signal_and_not_the_name():
    """S2 becomes IO: all names stand in place, and the name mover's output turns from IO to S."""
    p = prompts(TOKENIZER, 8)
    paths = PathPatching(WIRED.model, p.tokens, p.with_names(S2=p.io), p.difference)
    assert discover(paths).edges["L2H2", "logits", ""] == pytest.approx(20, abs=1e-3)
    assert paths.effect([(1, 1)], [(2, 2, "q")]) == pytest.approx(-20, abs=1e-3)
    assert paths.effect([(1, 1)], [(2, 2, "q")], p.roles["END"]) == pytest.approx(-20, abs=1e-3)
    assert paths.effect([(1, 1)], [(2, 2, "q")], p.roles["S2"]) == pytest.approx(0, abs=1e-6)
    assert paths.effect([(0, 0)], [(1, 1, "k"), (1, 1, "v")]) == pytest.approx(-20, abs=1e-3)
    assert paths.effect([(0, 0)], [(2, 2, "q")]) == pytest.approx(0, abs=1e-6)  # not directly
    assert paths.effect([(1, 1)]) == pytest.approx(0, abs=1e-6)


def test_discovers_the_induction_circuit():
    wired = induction_model()
    t, rng = wired.model.tokenizer, random.Random(0)
    rows = [rng.sample("abcdefghijkl", 5) for _ in range(8)]
    clean = torch.cat([t.encode(" ".join([*row[:4], row[1]])) for row in rows])  # a b c d b: c follows
    corrupted = torch.cat([t.encode(" ".join([row[0], row[4], *row[2:4], row[1]])) for row in rows])
    metric = logit_difference([t.id(row[2]) for row in rows], [t.id(row[3]) for row in rows])
    found = discover(PathPatching(wired.model, clean, corrupted, metric))
    assert found.edges == {
        ("L1H0", "logits", ""): pytest.approx(10, abs=1e-4),
        ("L0H1", "L1H0", "k"): pytest.approx(10, abs=1e-4),
    }
    assert agreement(found, true_circuit(wired))["edges"].recall == 1


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_found_where_there_is_no_circuit(seed):
    p = prompts(TOKENIZER, 16)
    model = circuit_free(WIRED, seed)
    assert abs(performance(model, p)["logit_difference"]) < 0.5
    assert discover(PathPatching(model, p.tokens, p.abc(), p.difference)) == Circuit({})


def test_discovery_follows_only_what_reaches_the_logits(monkeypatch):
    """Every edge of a random model's circuit is the effect of its path, and each of its nodes leads to the logits."""
    model, p = course_like(n_layers=3), prompts(TOKENIZER, 6)
    paths = PathPatching(model, p.tokens, p.abc(), p.difference)
    found = discover(paths, 0.02)
    assert 3 < len(found.nodes) <= 9
    assert {sender for sender, *_ in found.edges} == found.names
    told = {name for name in found.names if (name, "logits", "") in found.edges}
    for _ in range(3):
        told |= {sender for sender, receiver, _ in found.edges if receiver in told}
    assert told == found.names
    for sender, receiver, side in itertools.product(found.nodes, [*found.nodes, "logits"], ("", "q", "k", "v")):
        if (receiver == "logits") != (side == ""):
            continue
        (layer, head), *reads = (
            [int(n) for n in name[1:].split("H")] for name in (sender, receiver) if name != "logits"
        )
        effect = paths.effect([(layer, head)], [(*reads[0], side)] if reads else None)
        assert ((sender, receiver, side) in found.edges) == (abs(effect) >= 0.02)
        assert found.edges.get((sender, receiver, side), -effect) == pytest.approx(-effect, abs=1e-6)


# Heads by what they do ---------------------------------------------------------------------------


def test_the_wired_heads_look_where_their_roles_say():
    p = prompts(TOKENIZER, 20)
    tables = dict(zip(LOOKS, attention_by_role(WIRED.model, p, LOOKS.values()), strict=True))
    assert tables["duplicate-token"][0, 0] == pytest.approx(1, abs=1e-6)
    assert tables["S-inhibition"][1].tolist() == pytest.approx(
        [1 / (p.roles["END"] + 1).float().mean().item(), 1, 1], abs=0.01
    )
    assert tables["name mover"][2, 2] == pytest.approx(1, abs=1e-6)
    assert tables["name mover"][2, 0] == pytest.approx(1 / 3, abs=1e-6)  # the idle one: all names alike
    assert tables["previous-token"][0, 1] == pytest.approx(1, abs=1e-6)
    assert tables["duplicate-token"][0, 1] == pytest.approx(0, abs=1e-6)
    assert tables["previous-token"][0, 0] == pytest.approx(0, abs=1e-6)
    back = attention_by_role(WIRED.model, p, [("S1", "S2"), ("END", "END")])
    assert back[0].eq(0).all()  # nobody looks ahead


def test_where_each_kind_of_head_looks():
    """In `When John and Mary left, John gave it to`, with words in place of positions."""
    words = {"S1": "John", "S1+1": "and", "IO": "Mary", "S2": "John again", "END": "to"}
    assert {kind: (words[a], words[b]) for kind, (a, b) in LOOKS.items()} == {
        "previous-token": ("and", "John"),
        "duplicate-token": ("John again", "John"),
        "induction": ("John again", "and"),
        "S-inhibition": ("to", "John again"),
        "name mover": ("to", "Mary"),
    }


def test_attention_by_role_against_a_loop():
    model, p = course_like(), prompts(TOKENIZER, 5)
    pairs = [("END", "IO"), ("S2", "S1+1"), ("END", "S2")]
    found = attention_by_role(model, p, iter(pairs))
    assert len(found) == 3
    seen = [forward(model, TOKENIZER.encode(text)) for text in p.texts]
    for table, (a, b) in zip(found, pairs, strict=True):
        for layer, head in itertools.product(range(2), range(3)):
            own = [x["pattern", layer][0, head, p.roles[a][i], p.roles[b][i]] for i, x in enumerate(seen)]
            assert table[layer, head].item() == pytest.approx(torch.stack(own).mean().item(), abs=1e-5)
    assert attention_by_role(model, p, []) == []
    with pytest.raises(KeyError, match="S9"):
        attention_by_role(model, p, [("END", "S9")])


def test_copy_scores_of_the_wired_model():
    p = prompts(TOKENIZER, 20)
    for role in ("IO", "S1", "S2"):
        table = copy_scores(WIRED.model, p, role, top=1)
        assert table[2, 2] == 1
        assert table.sum() == 1
    assert copy_scores(WIRED.model, p)[2, 2] == 1
    assert copy_scores(WIRED.model, p, sign=-1)[2, 2] == 0  # it raises the name
    negative = ioi_model(-10.0)
    assert copy_scores(negative.model, p)[2, 2] == 0
    assert copy_scores(negative.model, p, sign=-1)[2, 2] == 1


def test_a_head_that_raises_no_word_copies_none():
    tokenizer = tinyworld.Tokenizer([tinyworld.BOS, *tinyworld.NAMES, "saw", "and", "told"])
    p = prompts(tokenizer, 200, templates=["and {A} saw {B} and {S} told"])
    model = random_model(Config(**{**vars(SHAPE), "d_vocab": len(tokenizer), "normalization_type": None, "n_ctx": 8}))
    model.unembed.b_U.zero_()
    for block in model.blocks:
        block.attn.W_O.zero_()
    assert copy_scores(model, p).eq(0).all()
    assert copy_scores(model, p, sign=-1).eq(0).all()


@pytest.mark.parametrize("change", [{}, {"attn_only": True, "d_mlp": 0}, {"normalization_type": "LNPre"}], ids=str)
def test_copy_scores_against_a_loop(change):
    model, p = course_like(**change), prompts(TOKENIZER, 24, names=FIVE)
    w = model.state_dict()

    def norm(x, name):
        x = F.layer_norm(x, (24,), eps=model.cfg.eps)
        return x * w[f"{name}.w"] + w[f"{name}.b"] if f"{name}.w" in w else x

    seen = []
    for sign, top, role in ((1, 5, "IO"), (-1, 5, "IO"), (1, 40, "S2"), (-1, 90, "S1")):
        expected = torch.zeros(2, 3)
        for i, text in enumerate(p.texts):
            at, one = p.roles[role][i], TOKENIZER.encode(text)
            x, name = forward(model, one)["resid", 1][0, at], one[0, at]
            for layer, head in itertools.product(range(2), range(3)):
                a = f"blocks.{layer}.attn"
                y = norm(x, f"blocks.{layer}.ln1")
                out = sign * ((y @ w[f"{a}.W_V"][head] + w[f"{a}.b_V"][head]) @ w[f"{a}.W_O"][head])
                logits = norm(out, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"]
                expected[layer, head] += (logits > logits[name]).sum() < top
        found = copy_scores(model, p, role, sign=sign, top=top)
        assert torch.allclose(found, expected / 24)
        seen.append(found)
    assert len(set(torch.stack(seen).flatten().tolist())) > 4  # not all alike


# Knocking out ------------------------------------------------------------------------------------

AT = frozenset({"L0H0 at S2", "L1H1 at END", "L2H2 at END"})


@pytest.fixture(scope="module")
def knockout():
    return Knockout(WIRED.model, prompts(TOKENIZER, 16))


def test_the_wired_circuit_does_it_alone(knockout):
    assert knockout.network == {f"L{i}H{h}" for i in range(3) for h in range(3)}
    assert knockout(knockout.network) == pytest.approx(10, abs=1e-4)
    assert knockout([]) == pytest.approx(0, abs=1e-4)
    assert knockout(WIRED.nodes) == pytest.approx(10, abs=1e-4)
    assert knockout(AT) == pytest.approx(10, abs=1e-4)
    assert knockout(WIRED.idle) == pytest.approx(0, abs=1e-4)
    assert faithfulness(knockout, AT, knockout.network) == pytest.approx(1, abs=1e-5)


def test_no_node_can_be_missing_and_none_elsewhere_helps(knockout):
    # Without the name mover nothing is said; without what stops it, it says S two times of three.
    left = {"L0H0": -10 / 3, "L1H1": -10 / 3, "L2H2": 0}
    for nodes in (frozenset(WIRED.nodes), AT):
        for node in nodes:
            assert knockout(nodes - {node}) == pytest.approx(left[node[:4]], abs=1e-4)
            elsewhere = {f"{node[:4]} at {role}" for role in ("IO", "S1", "S1+1", "END", "S2") if role not in node}
            wrong = nodes - {node} | (elsewhere if " at " in node else set())
            assert knockout(wrong) == pytest.approx(left[node[:4]], abs=1e-4)
    needed = minimality(knockout, AT)
    assert needed == pytest.approx({"L0H0 at S2": 40 / 3, "L1H1 at END": 40 / 3, "L2H2 at END": 10}, abs=1e-3)
    assert minimality(knockout, {*WIRED.nodes, "L2H0"})["L2H0"] == pytest.approx(0, abs=1e-4)
    sets = [(), ["L2H2"], ["L1H1"], ["L2H0", "L0H1"], ["L0H0", "L1H2"]]
    pairs = completeness(knockout, WIRED.nodes, knockout.network, sets)
    assert all(ours == pytest.approx(theirs, abs=1e-4) for ours, theirs in pairs)
    assert [ours for ours, _ in pairs] == pytest.approx([10, 0, -10 / 3, 10, -10 / 3], abs=1e-4)


@pytest.mark.parametrize(
    "node", ["L3H0", "L0H3", "L2H2 at", "L2H2 at S3", "L2H2@END", "MLP0", "", "embed", "L02H2", "l2h2"]
)
def test_nodes_that_are_not_there(knockout, node):
    with pytest.raises(ValueError, match=f"there is no node {node!r}"):
        knockout({"L0H0", node})
    with pytest.raises(ValueError, match="there is no node 'L'"):
        knockout("L2H2")  # a name for a set of names


def test_a_node_at_no_position(knockout):
    with pytest.raises(ValueError, match="there is no node 'L2H2 at '"):
        knockout(["L2H2 at "])


@pytest.mark.parametrize("change", [{}, {"attn_only": True, "d_mlp": 0}], ids=str)
def test_knocking_out_against_a_forward_pass_written_anew(change):
    """Means row by row and position by position; MLPs hear what is left of the heads, and are not touched."""
    model, p = course_like(**change), prompts(TOKENIZER, 6)
    draws = [forward(model, p.abc(seed)) for seed in range(3)]
    knockout = Knockout(model, p, draws=3)
    for kept in ([], ["L0H1", "L1H2"], ["L0H0 at S2", "L1H1 at END", "L1H1 at S1", "L0H2"], knockout.network):
        works = torch.zeros(2, 6, p.tokens.shape[1], 3)
        for node in kept:
            for row in range(6):
                where = p.roles[node[8:]][row] if " at " in node else slice(None)
                works[int(node[1]), row, where, int(node[3])] = 1
        put = {}
        for i in range(2):
            mean = torch.stack([x["z", i] for x in draws]).mean(dim=0)
            put["z", i] = lambda z, on=works[i][..., None], mean=mean: z * on + mean * (1 - on)
        logits = p.at("END", forward(model, p.tokens, put)["logits"])
        expected = (logits.gather(1, p.io[:, None]) - logits.gather(1, p.s[:, None])).mean().item()
        assert knockout(kept) == pytest.approx(expected, abs=1e-4)
        assert knockout(iter(kept)) == knockout(kept)
    assert knockout(knockout.network) == pytest.approx(performance(model, p)["logit_difference"], abs=1e-5)
    assert model.attached == {}


def test_a_sentences_own_words_stay():
    """What a head says of a template's words is in its mean: with no name between them, nothing changes."""
    p = prompts(TOKENIZER, 8)
    model = course_like()
    seen = {}

    def look(z, hook):
        seen[hook.name] = z

    with hooked(model, [("blocks.0.attn.hook_z", look)]):
        model(p.tokens)
    means = Knockout(model, p).means["blocks.0.attn.hook_z"]
    for row in range(8):
        first = min(p.roles["IO"][row], p.roles["S1"][row])
        assert torch.allclose(means[row, :first], seen["blocks.0.attn.hook_z"][row, :first], atol=1e-5)
        assert not torch.allclose(means[row, first:], seen["blocks.0.attn.hook_z"][row, first:], atol=1e-3)


def test_another_metric_for_knocking_out():
    p = prompts(TOKENIZER, 8)
    lift = Knockout(WIRED.model, p, p.lift)
    logits = WIRED.model(p.tokens)
    assert lift(lift.network) == pytest.approx(p.lift(logits).item(), abs=1e-4)
    assert lift(lift.network) == pytest.approx(5 - 10 / len(TOKENIZER), abs=1e-4)
    assert lift([]) == pytest.approx(-10 / len(TOKENIZER), abs=1e-4)  # other names are said instead
    constant = Knockout(WIRED.model, p, Metric(lambda x: x[..., 0] * 0 + 3))
    assert constant(["L2H2"]) == 3


# Roles and backups -------------------------------------------------------------------------------


def test_roles_are_those_that_were_wired():
    wired = ioi_model()
    p = prompts(wired.model.tokenizer, 12)
    found = discover(PathPatching(wired.model, p.tokens, p.abc(), p.difference))
    assert classified(wired.model, p, found).nodes == {name: role for name, (role, _) in wired.nodes.items()}
    assert classified(wired.model, p, found).edges == found.edges
    against = Circuit(found.nodes, {("L2H2", "logits", ""): -1.0})
    assert classified(wired.model, p, against).nodes["L2H2"] == "negative name mover head"
    elsewhere = classified(
        wired.model, p, Circuit({"L0H1": "", "L0H2": ""})
    )  # one looks back by one, the other is blank
    assert elsewhere.nodes == {"L0H1": "previous-token head", "L0H2": "other head"}


def test_backups_gain_when_others_are_gone():
    """In the wired model nobody steps in; in any model, the gain is the difference of two direct effects."""
    wired = ioi_model()
    p = prompts(wired.model.tokenizer, 12)
    gains = backups(wired.model, p, ["L2H2"])
    assert gains[2, 2].item() == pytest.approx(-10, abs=1e-3)  # knocked out, it tells the logits nothing any more
    gains[2, 2] = 0
    assert gains.abs().max() < 1e-3
    model = random_model(Config(**{**vars(SHAPE), "d_vocab": wired.model.cfg.d_vocab, "n_ctx": 64}))
    out = backups(model, p, ["L0H1"])
    assert out.shape == (model.cfg.n_layers, model.cfg.n_heads)
    assert model.attached == {}
    knockout = Knockout(model, p)
    with hooked(model, knockout.hooks(knockout.network - {"L0H1"})):
        after = PathPatching(model, p.tokens, p.abc(), p.difference).effect([(1, 0)])
    before = PathPatching(model, p.tokens, p.abc(), p.difference).effect([(1, 0)])
    assert out[1, 0].item() == pytest.approx(before - after, abs=1e-5)
