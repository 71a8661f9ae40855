"""Induction heads: scores against loops, interventions against a transformer written anew, on models whose circuit is known."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from interp_edu import handmade
from interp_edu import induction_heads as ih
from interp_edu.hooks import hooked, run_with_cache
from interp_edu.pretrained import load
from interp_edu.transformer import Config
from tests.test_transformer import SHAPE, random_model, tokens

KINDS = [
    {},
    {"normalization_type": "LNPre", "eps": 0.1, "attn_only": True, "d_mlp": 0},
    {"normalization_type": None},
]
kinds = pytest.mark.parametrize("change", KINDS, ids=str)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def three_layers(change, **more):
    return random_model(Config(**{**vars(SHAPE), "n_layers": 3, **change, **more}))


# Rows


@pytest.mark.parametrize("bos", [None, 0, 3, 8])
@pytest.mark.parametrize("times", [2, 3])
def test_repeated_tokens(bos, times):
    rows = ih.repeated_tokens(2000, 5, 9, times=times, bos=bos, generator=generator())
    begins = int(bos is not None)
    assert rows.shape == (2000, begins + 5 * times)
    assert rows.dtype == torch.int64
    if begins:
        assert (rows[:, 0] == bos).all()
    words = rows[:, begins:].view(2000, times, 5)
    assert (words == words[:, :1]).all()
    counts = torch.bincount(words[:, 0].flatten(), minlength=9)
    possible = 9 - begins
    assert begins == 0 or counts[bos] == 0
    expected = torch.full((9,), 10_000 / possible)
    expected[torch.arange(9) == (-1 if bos is None else bos)] = 0
    assert len(counts) == 9
    assert ((counts - expected).abs() < 5 * expected.sqrt() + 1e-6).all()  # all others, equally often
    assert torch.corrcoef(words[:, 0].T.float()).fill_diagonal_(0).abs().max() < 0.12  # each on its own
    again = ih.repeated_tokens(2000, 5, 9, times=times, bos=bos, generator=generator())
    assert torch.equal(rows, again)
    assert not torch.equal(rows, ih.repeated_tokens(2000, 5, 9, times=times, bos=bos, generator=generator(1)))


def is_made_of_phrases(words, phrases, longest):
    """Whether some set of so many phrases of 2 to `longest` words can write this; the last one may be cut off."""

    def rest(at, known):
        if at >= len(words):
            return True
        for phrase in known:
            if words[at : at + len(phrase)] == phrase[: len(words) - at] and rest(at + len(phrase), known):
                return True
        return len(known) < phrases and any(
            rest(at + n, (*known, words[at : at + n])) for n in range(2, longest + 1) if at + n <= len(words) or n == 2
        )

    return rest(0, ())


@pytest.mark.parametrize(("phrases", "longest"), [(4, 4), (2, 6), (1, 2)])
def test_phrase_tokens_are_made_of_phrases(phrases, longest):
    rows = ih.phrase_tokens(40, 31, 49, phrases=phrases, longest=longest, generator=generator())
    assert rows.shape == (40, 32)
    assert (rows[:, 0] == 0).all()
    assert rows[:, 1:].min() >= 1
    assert rows.max() <= 48
    assert all(is_made_of_phrases(tuple(row), phrases, longest) for row in rows[:, 1:].tolist())
    fewer = sum(is_made_of_phrases(tuple(row), phrases - 1, longest) for row in rows[:, 1:].tolist())
    assert fewer < 10  # nearly all rows need as many as there are
    other = torch.randint(1, 49, (10, 31), generator=generator(1)).tolist()
    assert not any(is_made_of_phrases(tuple(row), phrases, longest) for row in other)
    same = {"phrases": phrases, "longest": longest}
    assert torch.equal(rows, ih.phrase_tokens(40, 31, 49, **same, generator=generator()))
    assert not torch.equal(rows, ih.phrase_tokens(40, 31, 49, **same, generator=generator(1)))


def test_phrases_have_all_lengths_and_stand_in_any_order():
    """With so many words that each stands in one phrase only, the phrases can be read off."""
    assert ih.phrase_tokens(200, 12, 7, generator=generator())[:, 1:].unique().tolist() == [1, 2, 3, 4, 5, 6]
    rows = ih.phrase_tokens(600, 12, 10**9, phrases=1, generator=generator())[:, 1:]
    lengths = torch.tensor([len(set(row)) for row in rows.tolist()])
    for length in (2, 3, 4):
        assert (lengths == length).sum().item() == pytest.approx(200, abs=60)
        mine = rows[lengths == length]
        assert torch.equal(mine[:, length:], mine[:, :-length])
    rows = ih.phrase_tokens(2000, 12, 10**9, phrases=2, longest=2, generator=generator())[:, 1:]
    assert (rows[:, 0] == rows[:, 2]).float().mean().item() == pytest.approx(0.5, abs=0.06)  # the same once more
    assert (rows[:, 2] == rows[:, 8]).float().mean().item() == pytest.approx(0.5, abs=0.06)


# Targets, by loops over everything


def is_word(t, row, position, bos, lengths):
    return t[row, position] != bos and (lengths is None or position < lengths[row])


def targets_by_hand(t, bos, lengths, condition):
    rows, n = t.shape
    found = torch.zeros(rows, n, n, dtype=torch.bool)
    for row, query, key in itertools.product(range(rows), range(n), range(n)):
        words = is_word(t, row, query, bos, lengths) and is_word(t, row, key, bos, lengths)
        found[row, query, key] = words and key <= query and condition(row, query, key)
    return found


def rows_with_repeats():
    """Few words, hence many repeats, immediate ones too; word 0 also within a row."""
    t = torch.randint(4, (7, 9), generator=generator(2))
    t[:, 0] = 0
    t[0] = torch.tensor([0, 1, 1, 1, 2, 1, 2, 2, 1])
    t[1] = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])
    return t


@pytest.mark.parametrize("lengths", [None, [9, 9, 5, 1, 7, 2, 8]], ids=["whole", "cut"])
@pytest.mark.parametrize("bos", [None, 0, 2])
def test_targets_against_loops(bos, lengths):
    t, lengths = rows_with_repeats(), None if lengths is None else torch.tensor(lengths)
    for back in range(12):
        expected = targets_by_hand(t, bos, lengths, lambda row, query, key: query - key == back)  # noqa: B023
        assert torch.equal(ih.before(t, back, bos=bos, lengths=lengths), expected), back
    assert torch.equal(ih.before(t, bos=bos, lengths=lengths), ih.before(t, 1, bos=bos, lengths=lengths))
    for offset in (*range(-3, 6), 8, 9, -9, -10):

        def matched(row, query, key, offset=offset):
            match = key - offset
            return 0 <= match < query and bool(t[row, match] == t[row, query])

        found = ih.after_match(t, offset, bos=bos, lengths=lengths)
        assert torch.equal(found, targets_by_hand(t, bos, lengths, matched)), offset
        assert abs(offset) > 5 or bos == 2 or found.any()
    assert torch.equal(ih.after_match(t, bos=bos, lengths=lengths), ih.after_match(t, 1, bos=bos, lengths=lengths))


@pytest.mark.parametrize("offset", [5, 6, 7, 8, 20])
def test_an_offset_beyond_the_row_has_no_targets(offset):
    t = torch.tensor([[0, 1, 1, 1, 1]])
    assert not ih.after_match(t, offset).any()
    assert not ih.after_match(t, -offset).any()


def test_targets_on_a_row_that_can_be_seen():
    """<bos> A B C A B B: from the second A to B, from the second B to C, from the third B to C and to itself."""
    t = torch.tensor([[0, 1, 2, 3, 1, 2, 2]])
    assert ih.after_match(t).nonzero()[:, 1:].tolist() == [[4, 2], [5, 3], [6, 3], [6, 6]]
    assert ih.after_match(t, 0).nonzero()[:, 1:].tolist() == [[4, 1], [5, 2], [6, 2], [6, 5]]
    assert ih.before(t).nonzero()[:, 1:].tolist() == [[2, 1], [3, 2], [4, 3], [5, 4], [6, 5]]


# Scores


def test_attention_to_against_loops():
    t = rows_with_repeats()
    pattern = torch.randn(7, 3, 9, 9, generator=generator()).softmax(dim=-1)
    for targets in (ih.after_match(t), ih.before(t, 2), ih.after_match(t, -1, bos=None)):
        for head in range(3):
            given = [
                sum(pattern[row, head, query, key].item() for key in range(9) if targets[row, query, key])
                for row, query in itertools.product(range(7), range(9))
                if any(targets[row, query].tolist())
            ]
            assert ih.attention_to(pattern, targets)[head].item() == pytest.approx(sum(given) / len(given), abs=1e-6)
    assert torch.allclose(ih.attention_to(pattern, torch.ones(7, 9, 9).bool()), torch.ones(3))
    with pytest.raises(ValueError, match="are there repeats in these tokens"):
        ih.attention_to(pattern, torch.zeros(7, 9, 9).bool())
    with pytest.raises(ValueError, match="no query has a target"):
        ih.attention_scores(random_model(), torch.arange(9)[None], ih.after_match(torch.arange(9)[None]))


@kinds
def test_attention_scores_of_all_layers(change):
    model, t = three_layers(change), tokens(batch=5, length=12) % 6
    targets = ih.after_match(t)
    scores = ih.attention_scores(model, t, targets)
    assert scores.shape == (3, 3)
    _, cache = run_with_cache(model, t)
    for layer, head in itertools.product(range(3), range(3)):
        given = (cache["pattern", layer][:, head] * targets).sum(dim=-1)[targets.any(dim=-1)]
        assert scores[layer, head].item() == pytest.approx(given.mean().item(), abs=1e-6)


def test_scores_do_not_depend_on_padding_nor_on_rows_without_repeats():
    model = random_model()
    t, lengths = tokens(batch=4, length=9) % 6, torch.tensor([9, 7, 9, 5])
    junk = torch.cat([t, torch.randint(50, (4, 6), generator=generator())], dim=1)
    other = t.clone()
    for row, length in enumerate(lengths.tolist()):
        other[row, length:] = 1 + torch.arange(9 - length)
    for score in (ih.attention_scores, ih.copied_share):
        for make in (ih.after_match, ih.before, lambda t, lengths: ih.after_match(t, 0, lengths=lengths)):
            expected = score(model, t, make(t, lengths=lengths))
            assert torch.allclose(score(model, junk, make(junk, lengths=lengths)), expected, atol=1e-6)
            assert torch.allclose(score(model, other, make(other, lengths=lengths)), expected, atol=1e-6)
        more = torch.cat([t, torch.arange(20, 29)[None]])
        assert torch.allclose(score(model, more, ih.after_match(more)), score(model, t, ih.after_match(t)), atol=1e-6)


@pytest.mark.parametrize("change", [*KINDS, {"normalization_type": "LNPre"}], ids=str)
def test_copied_share_by_hand(change):
    """One query at a time: which logit a head raises most, through the last LayerNorm with its scale held."""
    model = three_layers(change, d_vocab=5)
    p = {name: value.double() for name, value in model.state_dict().items()}
    t = torch.randint(5, (6, 11), generator=generator())
    _, cache = run_with_cache(model, t, lambda name: True)
    for targets in (ih.after_match(t), ih.before(t, 2, bos=None)):
        shares = ih.copied_share(model, t, targets)
        assert shares.shape == (3, 3)
        for layer, head in itertools.product(range(3), range(3)):
            hits = []
            for row, query in targets.any(dim=-1).nonzero().tolist():
                keys = targets[row, query].nonzero().flatten().tolist()
                key = max(keys, key=lambda k: cache["pattern", layer][row, head, query, k])
                written = cache["result", layer][row, query, head].double()
                stream = cache["resid_post", 2][row, query].double()
                if model.cfg.normalization_type is not None:
                    written = (written - written.mean()) / torch.sqrt(stream.var(correction=0) + model.cfg.eps)
                    written = written * p.get("ln_final.w", 1)
                hits.append((written @ p["unembed.W_U"]).argmax() == t[row, key])
            assert shares[layer, head].item() == pytest.approx(sum(hits).item() / len(hits), abs=1e-6)
    assert shares.unique().numel() > 3


# Models whose circuit is known


def distinct(rows=50, period=7, seed=0):
    """Word 0, then a row of different letters, and the same again."""
    words = torch.stack([torch.randperm(12, generator=generator(seed + i))[:period] + 1 for i in range(rows)])
    return torch.cat([torch.zeros(rows, 1, dtype=torch.int64), words, words], dim=1)


CHANCE = math.log(13)  # all logits of a hand-wired model zero


def repetition_loss(model, t):
    """Of the second half but for its first word, which nobody can know."""
    return ih.token_losses(model, t)[:, (t.shape[1] + 1) // 2 :].mean().item()


def test_scores_of_the_hand_wired_model():
    model, t = handmade.induction_model().model, distinct()
    before, after = ih.before(t), ih.after_match(t)
    one = pytest.approx([1, 1], abs=1e-6)
    previous, induction = ih.attention_scores(model, t, before), ih.attention_scores(model, t, after)
    assert previous[0, [1, 2]].tolist() == one
    assert previous[1].max() < 0.2
    assert induction[1, [0, 1]].tolist() == one
    assert induction[0].max() < 0.1
    assert ih.attention_scores(model, t, ih.after_match(t, 0)).max() < 0.15
    other = ih.phrase_tokens(50, 15, 13, generator=generator())  # matches at all distances, and several at once
    assert ih.attention_scores(model, other, ih.after_match(other))[1, :2].tolist() == one
    assert max(ih.attention_scores(model, other, ih.before(other, back))[1, 0] for back in range(12)) < 0.4
    copied = torch.zeros(2, 3)
    copied[1, 0] = 1  # and not the idle head
    assert torch.equal(ih.copied_share(model, t, after), copied)
    losses = ih.token_losses(model, t)
    assert torch.allclose(losses[:, :7], torch.tensor(CHANCE))
    assert losses[:, 8:].max() < 1e-3
    assert ih.in_context_score(losses, slice(0, 7), slice(8, 14)) == pytest.approx(
        math.log(1 + 12 * math.exp(-10)) - CHANCE, abs=1e-5
    )


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_scores_of_the_shifted_model(shift):
    """The usual score sees nothing; the copying is real all the same, and so is the attention further on."""
    model, t = handmade.shifted_induction_model(shift).model, distinct()
    for offset in range(7):
        score = ih.attention_scores(model, t, ih.after_match(t, offset))[1, 0].item()
        assert score == pytest.approx(float(offset == 1 + shift), abs=1e-6)
    assert ih.attention_scores(model, t, ih.before(t, 1 + shift))[0, 1].item() == pytest.approx(1, abs=1e-6)
    assert ih.copied_share(model, t, ih.after_match(t)).tolist() == [[0, 0, 0], [1, 0, 0]]
    assert ih.copied_share(model, t, ih.after_match(t, 1 + shift)).max() == 0
    assert repetition_loss(model, t) < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_controls_score_at_chance(seed):
    t = distinct()
    for make in (handmade.induction_model, handmade.shifted_induction_model):
        control = handmade.circuit_free(make(), seed)
        assert ih.attention_scores(control, t, ih.before(t)).max() < 0.3
        assert ih.attention_scores(control, t, ih.after_match(t)).max() < 0.2
        assert ih.copied_share(control, t, ih.after_match(t)).max() < 0.2
        assert repetition_loss(control, t) > CHANCE


# Losses


@pytest.mark.parametrize("lengths", [None, [9, 4, 1]])
def test_token_losses_by_hand(lengths):
    model, t = random_model(), tokens()
    losses = ih.token_losses(model, t, None if lengths is None else torch.tensor(lengths))
    assert losses.shape == (3, 8)
    logits = model(t).double()
    for row, i in itertools.product(range(3), range(8)):
        if lengths is not None and i + 1 >= lengths[row]:
            assert losses[row, i].isnan()
        else:
            expected = F.cross_entropy(logits[row, i], t[row, i + 1])
            assert losses[row, i].item() == pytest.approx(expected.item(), abs=1e-4)


def test_in_context_score():
    losses = torch.tensor([[8.0, 6.0, 4.0, 1.0], [6.0, 4.0, 2.0, torch.nan]])
    assert ih.in_context_score(losses, slice(0, 2), slice(2, 3)) == pytest.approx(3 - 6)
    assert ih.in_context_score(losses, slice(0, 1), slice(2, 4)) == pytest.approx(7 / 3 - 7)
    assert ih.in_context_score(losses, slice(3, 4), slice(0, 1)) == pytest.approx(7 - 1)
    with pytest.raises(ValueError, match=r"no token lies in slice\(4, 9"):
        ih.in_context_score(losses, slice(0, 1), slice(4, 9))
    with pytest.raises(ValueError, match=r"no token lies in slice\(7, 9"):
        ih.in_context_score(losses, slice(7, 9), slice(0, 1))
    with pytest.raises(ValueError, match=r"no token lies in slice\(3, 4"):
        ih.in_context_score(losses[1:], slice(0, 1), slice(3, 4))


# Interventions


def slow_run(model, t, change_z=None, change_input=None):
    """Logits, each head's z and each head's result in float64, head by head. `change_z(layer, head, z)` replaces a
    head's mixture of values; `change_input(layer, head, side, x)` the stream that a side of it is computed from."""
    p, cfg = {name: value.double() for name, value in model.state_dict().items()}, model.cfg

    def norm(x, name):
        if cfg.normalization_type is None:
            return x
        x = x - x.mean(dim=-1, keepdim=True)
        x = x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + cfg.eps)
        return x * p[f"{name}.w"] + p[f"{name}.b"] if f"{name}.w" in p else x

    n = t.shape[1]
    x, zs, results = p["embed.W_E"][t] + p["pos_embed.W_pos"][:n], {}, {}
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}"
        for head in range(cfg.n_heads):
            q, k, v = (
                norm(change_input(layer, head, side.lower(), x) if change_input else x, f"{at}.ln1")
                @ p[f"{at}.attn.W_{side}"][head]
                + p[f"{at}.attn.b_{side}"][head]
                for side in "QKV"
            )
            scores = (q @ k.mT / math.sqrt(cfg.d_head)).masked_fill(~torch.ones(n, n).tril().bool(), -math.inf)
            z = scores.softmax(dim=-1) @ v
            zs[layer, head] = change_z(layer, head, z) if change_z else z
            results[layer, head] = zs[layer, head] @ p[f"{at}.attn.W_O"][head]
        x = x + sum(results[layer, head] for head in range(cfg.n_heads)) + p[f"{at}.attn.b_O"]
        if not cfg.attn_only:
            act = {"gelu_new": lambda y: F.gelu(y, approximate="tanh"), "relu": F.relu}[cfg.act_fn]
            pre = norm(x, f"{at}.ln2") @ p[f"{at}.mlp.W_in"] + p[f"{at}.mlp.b_in"]
            x = x + act(pre) @ p[f"{at}.mlp.W_out"] + p[f"{at}.mlp.b_out"]
    return norm(x, "ln_final") @ p["unembed.W_U"] + p["unembed.b_U"], zs, results


def same_logits(found, expected):
    return torch.allclose(found.double(), expected, atol=3e-4, rtol=1e-4)


@kinds
@pytest.mark.parametrize("heads", [[(1, 0)], [(0, 2), (2, 1), (0, 0)], [(0, 0), (0, 1), (0, 2), (1, 1)]], ids=str)
def test_ablation_by_hand(change, heads):
    model, t = three_layers(change), tokens(batch=4)
    clean, zs, _ = slow_run(model, t)
    assert same_logits(model(t), clean)

    def mean(layer, head, z):  # of the clean run, also if a head below is ablated too
        return zs[layer, head].mean(dim=0, keepdim=True).expand_as(z) if (layer, head) in heads else z

    expected, _, _ = slow_run(model, t, change_z=mean)
    for hooks in (ih.ablation(model, t, heads), ih.ablation(model, t, iter(heads), "mean")):
        with hooked(model, hooks):
            assert same_logits(model(t), expected)
            assert same_logits(run_with_cache(model, t)[0], expected)
    edited = three_layers(change)
    for layer, head in heads:
        edited.blocks[layer].attn.W_O[head] = 0
    expected, _, _ = slow_run(edited, t)
    with hooked(model, ih.ablation(model, t, heads, "zero")):
        assert same_logits(model(t), expected)
    assert not model.attached
    assert same_logits(model(t), clean)
    assert not same_logits(expected.float(), clean)


@kinds
@pytest.mark.parametrize(
    ("senders", "receivers"),
    [
        ([(0, 1)], [(1, 2)]),
        ([(0, 0), (1, 2)], [(2, 0), (2, 1)]),
        ([(0, 2)], [(1, 0), (2, 1), (1, 1)]),  # receivers in two layers, and the lower ones feed the upper
        ([(0, 0), (0, 1), (0, 2)], [(2, 2)]),
    ],
    ids=str,
)
def test_cut_by_hand(change, senders, receivers):
    model, t = three_layers(change), tokens(batch=4)
    clean, _, results = slow_run(model, t)
    said = sum(results[sender] for sender in senders)
    said = said - said.mean(dim=0)
    found = {}
    for side in "qkv":

        def without(layer, head, at, x, side=side):
            return x - said if (layer, head) in receivers and at == side else x

        expected, _, _ = slow_run(model, t, change_input=without)
        with hooked(model, ih.cut(model, t, iter(senders), iter(receivers), side)):
            found[side] = model(t)
        assert same_logits(found[side], expected)
        assert not same_logits(found[side], clean)
        assert not model.attached
    with hooked(model, ih.cut(model, t, senders, receivers)):
        assert torch.equal(model(t), found["k"])
    assert same_logits(model(t), clean)


def test_a_cut_leaves_all_others_what_they_read():
    """Nothing but the named side of the named heads changes in the receivers' layer."""
    model, t = random_model(), tokens()
    _, clean = run_with_cache(model, t)
    for side, other in itertools.product("qkv", "qkv"):
        with hooked(model, ih.cut(model, t, [(0, 1)], [(1, 2)], side)):
            _, cache = run_with_cache(model, t)
        same = torch.isclose(cache[other, 1], clean[other, 1], atol=1e-5).flatten(0, 1).all(dim=-1).all(dim=0)
        assert same.tolist() == [True, True, side != other]
        assert torch.allclose(cache["resid_pre", 1], clean["resid_pre", 1], atol=1e-5)


def test_a_head_that_is_named_twice_counts_once():
    model, t = random_model(), tokens()
    for twice, once in (
        (ih.cut(model, t, [(0, 1), (0, 1)], [(1, 2), (1, 2)]), ih.cut(model, t, [(0, 1)], [(1, 2)])),
        (ih.ablation(model, t, [(0, 1), (0, 1)]), ih.ablation(model, t, [(0, 1)])),
    ):
        logits = []
        for hooks in (twice, once):
            with hooked(model, hooks):
                logits.append(model(t))
        assert torch.allclose(*logits, atol=1e-5)


def test_wrong_interventions_are_refused():
    model, t = random_model(), tokens()
    for call, words in [
        (lambda: ih.ablation(model, t, [(0, 1)], "median"), "how must be 'mean' or 'zero', not 'median'"),
        (lambda: ih.ablation(model, t, [(0, 0), (0, 3)]), "no L0H3 in 2 layers of 3 heads"),
        (lambda: ih.ablation(model, t, [(2, 0)]), "no L2H0"),
        (lambda: ih.ablation(model, t, [(0, -1)]), "no L0H-1"),
        (lambda: ih.ablation(model, t, []), "at least one head"),
        (lambda: ih.cut(model, t, [(0, 0)], [(1, 0)], "z"), "side must be 'q', 'k' or 'v', not 'z'"),
        (lambda: ih.cut(model, t, [(0, 0)], [(0, 1)]), "earlier layer than every receiver"),
        (lambda: ih.cut(model, t, [(1, 0)], [(0, 1)]), "earlier layer than every receiver"),
        (lambda: ih.cut(model, t, [(0, 0), (1, 0)], [(1, 1)]), "earlier layer than every receiver"),
        (lambda: ih.cut(model, t, [(0, 0)], [(1, 1), (0, 1)]), "earlier layer than every receiver"),
        (lambda: ih.cut(model, t, [(0, 5)], [(1, 1)]), "no L0H5"),
        (lambda: ih.cut(model, t, [(0, 0)], [(1, 3)]), "no L1H3"),
        (lambda: ih.cut(model, t, [(0, 0)], []), "at least one head"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_interventions_on_the_hand_wired_model():
    model, t = handmade.induction_model().model, distinct()
    clean = model(t)
    assert repetition_loss(model, t) < 1e-3
    for how in ("mean", "zero"):
        for head, needed in {(1, 0): True, (0, 1): True, (1, 1): False, (0, 2): False, (0, 0): False}.items():
            with hooked(model, ih.ablation(model, t, [head], how)):
                loss = repetition_loss(model, t)
                assert needed or torch.allclose(model(t), clean, atol=1e-6)
            assert (loss > CHANCE - 0.2) == needed
            assert how == "mean" or not needed or loss == pytest.approx(CHANCE, abs=1e-5)
    for sender, receiver, side in itertools.product(range(3), range(3), "qkv"):
        with hooked(model, ih.cut(model, t, [(0, sender)], [(1, receiver)], side)):
            score = ih.attention_scores(model, t, ih.after_match(t))[1, 0]
            if (sender, receiver, side) == (1, 0, "k"):
                assert repetition_loss(model, t) == pytest.approx(CHANCE, abs=0.01)
                assert score < 0.01
            else:
                assert torch.allclose(model(t), clean, atol=1e-6)
                assert score > 0.999


def test_a_cut_of_the_shifted_model_finds_both_routes():
    model, t = handmade.shifted_induction_model().model, distinct()
    needed = {(1, "k"), (0, "v")}
    for sender, side in itertools.product(range(3), "qkv"):
        with hooked(model, ih.cut(model, t, [(0, sender)], [(1, 0)], side)):
            assert (repetition_loss(model, t) > 2) == ((sender, side) in needed)


@pytest.mark.parametrize("seed", range(3))
def test_the_course_model(seed):
    """What the page says of each of the three: six induction heads, which read the previous-token heads in their keys."""
    model = load("tinyworld", seed=seed)
    t = ih.repeated_tokens(60, 31, model.cfg.d_vocab, generator=generator(seed))
    after = ih.after_match(t)
    previous, induction = (ih.attention_scores(model, t, targets) for targets in (ih.before(t), after))
    assert (induction > 0.75).nonzero().tolist() == [[1, head] for head in range(6)]
    assert induction[[0, 2, 3]].max() < 0.1
    best = previous[0].topk(2)
    assert best.values.max() > 0.5
    senders, receivers = [(0, head) for head in best.indices.tolist()], [(1, head) for head in range(6)]
    clean = ih.token_losses(model, t)[:, 32:].mean()
    assert clean < 0.3
    for side in "qkv":
        with hooked(model, ih.cut(model, t, senders, receivers, side)):
            loss, score = ih.token_losses(model, t)[:, 32:].mean(), ih.attention_scores(model, t, after)[1].mean()
        if side == "k":
            assert score < 0.1
            assert loss > 5
        else:
            assert (loss - clean).abs() < 0.05
            assert score > 0.7
