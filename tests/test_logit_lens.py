"""The logit lens and direct logit attribution: loops in float64, the model with its last scale frozen, hand-wired models."""

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F

from interp_edu import handmade, tinyworld
from interp_edu import logit_lens as ll
from interp_edu.folding import fold_layer_norm
from interp_edu.hooks import Cache, hooked, run_with_cache
from interp_edu.pretrained import load
from interp_edu.transformer import Config
from tests.test_attention_heads import Largest
from tests.test_transformer import SHAPE, random_model

ATTENTION_ONLY = {"attn_only": True, "d_mlp": 0}
KINDS = [
    {},  # LayerNorm with its weights and biases, all random
    {"eps": 0.5, "n_layers": 1, "act_fn": "relu"},
    {"normalization_type": "LNPre", "eps": 0.5, **ATTENTION_ONLY},
    {"normalization_type": "LNPre", "n_layers": 3, "d_model": 7, "n_heads": 1, "d_head": 3, "d_vocab": 11, "d_mlp": 5},
    {"normalization_type": None, "d_model": 23},
    {"normalization_type": None, **ATTENTION_ONLY},
]
kinds = pytest.mark.parametrize("change", KINDS, ids=str)
batches = pytest.mark.parametrize("batch", [1, 3])


def make(change, seed=0):
    return random_model(Config(**{**vars(SHAPE), **change}), seed)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(model, batch=3, length=9, seed=0):
    return torch.randint(model.cfg.d_vocab, (batch, length), generator=generator(seed))


def everything(model, t):
    """What a run records by default, and each head's result."""
    return run_with_cache(model, t, lambda name: name in model.hook_names or name.endswith("hook_result"))[1]


def any_streams(model, batch=3, length=9):
    """Unlike those of a run: with means that are not near zero, and each of its own size."""
    sizes = torch.tensor([0.1, 1.0, 5.0])[:, None, None, None]
    return sizes * (torch.randn(3, batch, length, model.cfg.d_model, generator=generator(3)) + 2)


def has_norm(model):
    return model.cfg.normalization_type is not None


def frozen(model, scale):
    """The model with the last LayerNorm's scale given."""
    return hooked(model, [("ln_final.hook_scale", lambda x, hook: scale.expand_as(x))] if has_norm(model) else [])


def final_scale(x, eps):
    """What the last LayerNorm divides the stream x [..., d_model] by."""
    return ((x - x.mean(dim=-1, keepdim=True)).square().mean(dim=-1, keepdim=True) + eps).sqrt()


def close(x, expected, tolerance=1e-4):
    return torch.allclose(x.double(), expected.double(), atol=tolerance, rtol=tolerance)


# Streams


@kinds
@batches
def test_streams_are_those_before_each_layer_and_the_last(change, batch):
    model = make(change)
    t = rows(model, batch)
    expected = torch.stack([model(t, stop_at_layer=layer) for layer in range(model.cfg.n_layers + 1)])
    few = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    few.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    for names in (None, lambda name: True, few):
        x = ll.streams(run_with_cache(model, t, names)[1])
        assert x.shape == (model.cfg.n_layers + 1, batch, 9, model.cfg.d_model)
        assert close(x, expected, 1e-5)


def test_streams_of_twelve_layers_are_in_order():
    """Of numbers, not of letters: 10 comes after 9."""
    cache = Cache()
    for layer in (11, 3, 10, *range(3), *range(4, 10)):
        cache[f"blocks.{layer}.hook_resid_post"] = torch.full((1, 2, 3), layer + 0.5)
        cache[f"blocks.{layer}.hook_resid_pre"] = torch.full((1, 2, 3), float(layer))
        cache[f"blocks.{layer}.ln1.hook_scale"] = torch.ones(1, 2, 1)
    assert ll.streams(cache)[:, 0, 0, 0].tolist() == [*range(12), 11.5]


def test_streams_that_were_not_recorded():
    model = make({})
    for names in ("blocks.1.hook_resid_post", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"], "hook_embed"):
        _, cache = run_with_cache(model, rows(model), names)
        with pytest.raises(KeyError, match="was not recorded"):
            ll.streams(cache)


# The logit lens


def lens_by_hand(model, x, norm):
    """Log probabilities, one stream at a time, in float64."""
    p = {name: value.double() for name, value in model.state_dict().items()}
    found = torch.empty(*x.shape[:3], model.cfg.d_vocab, dtype=torch.float64)
    for layer, row, position in itertools.product(*map(range, x.shape[:3])):
        y, last = x[layer, row, position].double(), x[-1, row, position].double()
        if has_norm(model) and norm != "none":
            of = y if norm == "own" else last
            y = (y - y.mean()) / torch.sqrt(((of - of.mean()) ** 2).mean() + model.cfg.eps)
            if model.cfg.normalization_type == "LN":
                y = y * p["ln_final.w"] + p["ln_final.b"]
        logits = y @ p["unembed.W_U"] + p["unembed.b_U"]
        found[layer, row, position] = logits - logits.exp().sum().log()
    return found


@kinds
@batches
@pytest.mark.parametrize("norm", ["own", "last", "none"])
def test_logit_lens_by_hand(change, batch, norm):
    model = make(change)
    for x in (ll.streams(everything(model, rows(model, batch))), any_streams(model, batch)):
        lens = ll.logit_lens(model, x, norm=norm)
        assert lens.log_probs.shape == (*x.shape[:3], model.cfg.d_vocab)
        assert close(lens.log_probs, lens_by_hand(model, x, norm))


@kinds
@batches
def test_the_usual_lens_is_the_model_that_starts_after_its_last_layer(change, batch):
    model = make(change)
    n_layers, t = model.cfg.n_layers, rows(model, batch)
    for x in (ll.streams(everything(model, t)), any_streams(model, batch)):
        expected = torch.stack([model(y, start_at_layer=n_layers).log_softmax(dim=-1) for y in x])
        assert close(ll.logit_lens(model, x, norm="own").log_probs, expected, 1e-5)
        assert torch.equal(ll.logit_lens(model, x).log_probs, ll.logit_lens(model, x, norm="own").log_probs)


@kinds
@batches
def test_the_last_scale_is_that_of_the_model_with_its_scale_frozen(change, batch):
    model = make(change)
    for x in (ll.streams(everything(model, rows(model, batch))), any_streams(model, batch)):
        with frozen(model, final_scale(x[-1], model.cfg.eps)):
            expected = torch.stack([model(y, start_at_layer=model.cfg.n_layers).log_softmax(dim=-1) for y in x])
        assert close(ll.logit_lens(model, x, norm="last").log_probs, expected)


@kinds
def test_the_last_layer_says_what_the_model_says(change):
    model = make(change)
    t = rows(model)
    x, expected = ll.streams(everything(model, t)), model(t).log_softmax(dim=-1)
    for norm in ("own", "last") if has_norm(model) else ("own", "last", "none"):
        assert close(ll.logit_lens(model, x, norm=norm).log_probs[-1], expected, 1e-5)
    if has_norm(model):  # the three differ where they should
        for one, other in itertools.combinations(("own", "last", "none"), 2):
            lenses = [ll.logit_lens(model, x, norm=norm).log_probs for norm in (one, other)]
            assert (lenses[0][:-1] - lenses[1][:-1]).abs().max() > 0.1
            assert "none" in (one, other) or close(lenses[0][-1], lenses[1][-1], 1e-5)
        assert (ll.logit_lens(model, x, norm="none").log_probs[-1] - expected).abs().max() > 0.1


@pytest.mark.parametrize("norm", ["final", "", "Own"])
def test_another_norm_is_refused(norm):
    for change in KINDS:
        model = make(change)
        with pytest.raises(ValueError, match=f"norm must be one of 'own', 'last', 'none', not '{norm}'"):
            ll.logit_lens(model, any_streams(model), norm=norm)


# What a lens tells


def random_lens(seed=0):
    """With tokens that are equally likely: half of the logits are one of a few numbers."""
    logits = torch.randn(4, 3, 5, 8, generator=generator(seed), dtype=torch.float64)
    logits[..., ::2] = logits[..., ::2].round()
    return ll.Lens(logits.log_softmax(dim=-1))


def test_lens_against_loops():
    lens = random_lens()
    tokens = torch.randint(8, (3, 5), generator=generator(1))
    probability, rank, entropy, kl = lens.probability(tokens), lens.rank(tokens), lens.entropy(), lens.kl_to_final()
    tops = {n: lens.top(n) for n in (1, 3, 8)}
    assert torch.equal(lens.top(), lens.top(1))
    assert probability.shape == rank.shape == entropy.shape == kl.shape == (4, 3, 5)
    assert all(top.shape == (4, 3, 5, n) for n, top in tops.items())
    ties = 0
    for at in itertools.product(range(4), range(3), range(5)):
        logs, final, token = lens.log_probs[at].tolist(), lens.log_probs[-1][at[1:]].tolist(), tokens[at[1:]].item()
        assert probability[at].item() == pytest.approx(math.exp(logs[token]))
        assert rank[at].item() == sum(x > logs[token] for x in logs)
        ties += sum(x == logs[token] for x in logs) > 1
        assert entropy[at].item() == pytest.approx(-sum(math.exp(x) * x for x in logs))
        assert kl[at].item() == pytest.approx(
            sum(math.exp(p) * (p - q) for p, q in zip(final, logs, strict=True)), abs=1e-12
        )
        for n, top in tops.items():
            chosen = top[at].tolist()
            assert len(set(chosen)) == n
            assert [logs[token] for token in chosen] == sorted(logs, reverse=True)[:n]
    assert ties > 10


def test_lens_against_torch():
    lens = random_lens(1)
    assert torch.allclose(lens.entropy(), torch.distributions.Categorical(logits=lens.log_probs).entropy())
    final = lens.log_probs[-1].expand_as(lens.log_probs)
    expected = F.kl_div(lens.log_probs, final, reduction="none", log_target=True).sum(dim=-1)
    assert torch.allclose(lens.kl_to_final(), expected)
    assert (lens.kl_to_final()[:-1] > 0).all()
    assert (lens.kl_to_final()[-1] == 0).all()


def test_lens_in_closed_form():
    uniform, sure = torch.full((6,), -math.log(6)), torch.tensor([0.0, *[-1e4] * 5]).log_softmax(dim=0)
    half = torch.tensor([0.5, 0.25, 0.25, 0, 0, 0]).clamp_min(1e-30).log()
    lens = ll.Lens(torch.stack([uniform, sure, half])[:, None, None])
    zeros = torch.zeros(1, 1, dtype=torch.int64)
    assert lens.entropy().flatten().tolist() == pytest.approx([math.log(6), 0, 1.5 * math.log(2)], abs=1e-6)
    assert lens.probability(zeros).flatten().tolist() == pytest.approx([1 / 6, 1, 0.5], abs=1e-6)
    assert lens.probability(zeros + 2).flatten().tolist() == pytest.approx([1 / 6, 0, 0.25], abs=1e-6)
    assert lens.rank(zeros + 5).flatten().tolist() == [0, 1, 3]
    assert lens.rank(zeros + 2).flatten().tolist() == [0, 1, 1]  # as likely is not likelier
    # KL(half || uniform) = log 6 - H(half); a wrong certainty costs 5,000, a right one nothing more.
    kl = lens.kl_to_final().flatten().tolist()
    assert kl == pytest.approx([math.log(6) - 1.5 * math.log(2), 5000 - 1.5 * math.log(2), 0], rel=1e-6)
    turned = ll.Lens(lens.log_probs[[2, 0, 1]])  # the final one is sure: KL is what the layer gives its token
    assert turned.kl_to_final().flatten().tolist() == pytest.approx([math.log(2), math.log(6), 0], abs=1e-6)
    same = ll.Lens(uniform.expand(4, 2, 3, 6))
    assert same.kl_to_final().abs().max() == 0
    assert close(same.entropy(), torch.full((4, 2, 3), math.log(6)), 1e-6)


def test_a_model_that_says_nothing():
    model = make({})
    for parameter in model.unembed.parameters():
        parameter.zero_()
    lens = ll.logit_lens(model, ll.streams(everything(model, rows(model))))
    assert close(lens.entropy(), torch.full((3, 3, 9), math.log(50)), 1e-5)
    assert lens.kl_to_final().abs().max() < 1e-6


# The tuned lens


def some_maps(n_layers, d_model, seed=0):
    lens = ll.TunedLens(n_layers, d_model)
    for i, parameter in enumerate(lens.parameters()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator(seed + i)))
    return lens


@kinds
def test_a_new_tuned_lens_is_the_logit_lens(change):
    model = make(change)
    x = ll.streams(everything(model, rows(model)))
    lens = ll.TunedLens(model.cfg.n_layers, model.cfg.d_model)
    assert torch.equal(lens(x), x)
    assert sum(p.numel() for p in lens.parameters()) == model.cfg.n_layers * model.cfg.d_model * (model.cfg.d_model + 1)
    assert all(p.requires_grad for p in lens.parameters())


@batches
def test_each_layer_has_an_affine_map_of_its_own(batch):
    lens, x = some_maps(2, 6), torch.randn(3, batch, 4, 6, generator=generator(5))
    found = lens(x).detach()
    assert found.shape == x.shape
    assert torch.equal(found[-1], x[-1])
    for layer, row, position in itertools.product(range(2), range(batch), range(4)):
        y = x[layer, row, position].double()
        expected = y + y @ lens.A.data[layer].double() + lens.b.data[layer].flatten().double()
        assert close(found[layer, row, position], expected, 1e-5)


def prompts(model, size=8):
    """A draw(step) of random prompts, and where it writes down what it was asked for."""
    asked = []

    def draw(step):
        asked.append(step)
        return rows(model, size, 12, seed=1000 + step)

    return draw, asked


def kl_of(model, t, lens=None):
    """Mean KL(final || layer) for each layer, by torch's own function, in float64."""
    x = ll.streams(everything(model, t))
    x = x if lens is None else lens(x).detach()
    logs = torch.stack([model(y, start_at_layer=model.cfg.n_layers).double().log_softmax(dim=-1) for y in x])
    return F.kl_div(logs, logs[-1].expand_as(logs), reduction="none", log_target=True).sum(dim=-1).mean(dim=(1, 2))


@kinds
def test_fitting_is_adam_on_the_divergence(change):
    """Written anew: after a few steps the parameters and the history are the same."""
    model = make(change)
    n_layers, d_model = model.cfg.n_layers, model.cfg.d_model
    draw, asked = prompts(model)
    lens = ll.TunedLens(n_layers, d_model)
    history = lens.fit(model, draw, steps=4, lr=0.01)
    assert asked == [0, 1, 2, 3]

    A, b = torch.zeros(n_layers, d_model, d_model), torch.zeros(n_layers, d_model)
    optimizer, expected = torch.optim.Adam([A.requires_grad_(), b.requires_grad_()], lr=1.0), []
    for step in range(4):
        optimizer.param_groups[0]["lr"] = [0.01, 0.0075, 0.005, 0.0025][step]
        t, kl = draw(step), 0
        final = model(t).log_softmax(dim=-1)
        for layer in range(n_layers):
            x = model(t, stop_at_layer=layer)
            mended = model(x + x @ A[layer] + b[layer], start_at_layer=n_layers).log_softmax(dim=-1)
            kl = kl + F.kl_div(mended, final, reduction="sum", log_target=True) / t.numel()
        optimizer.zero_grad()
        kl.backward()
        optimizer.step()
        expected.append(kl.item() / n_layers)
    assert history == pytest.approx(expected, rel=1e-4)
    assert history[0] == pytest.approx(kl_of(model, draw(0))[:-1].mean().item(), rel=1e-4)
    for found, wanted in ((lens.A, A), (lens.b[:, 0, 0], b)):
        # Adam's first steps are as large as the rate, whatever the gradient: where it is zero, so but for rounding,
        # their sign is chance.
        assert ((found - wanted).abs() < 1e-4).float().mean() > 0.98


def test_the_rate_of_learning():
    """Adam's first step is as large as its rate; and the default is 0.001."""
    model = make({})
    for more, rate in (({}, 1e-3), ({"lr": 0.2}, 0.2)):
        lens = ll.TunedLens(2, 24)
        lens.fit(model, prompts(model)[0], steps=1, **more)
        assert lens.b.abs().median().item() == pytest.approx(rate, rel=1e-2)
        assert lens.A.abs().median().item() == pytest.approx(rate, rel=1e-2)


@pytest.mark.parametrize("change", [{}, {"normalization_type": "LNPre"}, {"normalization_type": None}], ids=str)
def test_fitting_helps_on_prompts_not_seen_and_leaves_the_model_alone(change):
    model = make(change)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lens, held_out = ll.TunedLens(2, 24), rows(model, 20, 12, seed=1)
    history = lens.fit(model, prompts(model)[0], steps=70, lr=0.01)
    assert len(history) == 70
    assert sum(history[-10:]) < 0.6 * sum(history[:10])
    plain, tuned = kl_of(model, held_out), kl_of(model, held_out, lens)
    assert (tuned[:-1] < 0.6 * plain[:-1]).all()
    assert tuned[-1] == plain[-1] == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not model.attached


def test_gradients_are_only_for_the_lens():
    """Also if the model's parameters want some: who trains it next would add them to their own."""
    model = make({}).requires_grad_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lens = ll.TunedLens(2, 24)
    lens.fit(model, prompts(model)[0], steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert [name for name, p in model.named_parameters() if p.grad is not None] == []
    other = ll.TunedLens(2, 24)
    other.fit(model.requires_grad_(False), prompts(model)[0], steps=2)
    assert torch.allclose(lens.A, other.A, atol=1e-5)


def test_fitting_where_gradients_are_off():
    """As in a notebook that has turned them off for good."""
    model, lens = make({}), ll.TunedLens(2, 24)
    with torch.no_grad():
        lens.fit(model, prompts(model)[0], steps=1)
        assert not torch.is_grad_enabled()
    assert lens.b.abs().max() > 0


def test_fitting_is_reproducible():
    model, found = make({}), []
    for chance, first in ((0, 0), (1, 0), (0, 7)):
        torch.manual_seed(chance)
        lens, state = ll.TunedLens(2, 24), torch.get_rng_state()
        history = lens.fit(model, lambda step, first=first: rows(model, seed=first + step), steps=3)
        assert torch.equal(torch.get_rng_state(), state)
        found.append((history, lens.A.detach(), lens.b.detach()))
    (one, A, b), (same, *others), (another, C, _) = found
    assert one == same
    assert torch.equal(A, others[0])
    assert torch.equal(b, others[1])
    assert one != another
    assert not torch.equal(A, C)
    lens = ll.TunedLens(2, 24)
    assert lens.fit(model, prompts(model)[0], steps=0) == []
    assert lens.A.abs().max() == 0


def test_where_nothing_is_to_be_gained_nothing_is_learned():
    """If all predictions are the same, gradients are 0, and a lens stays as it is: no weight decay either."""
    model, lens = make({}), some_maps(2, 24)
    for parameter in model.unembed.parameters():
        parameter.zero_()
    before = [p.detach().clone() for p in lens.parameters()]
    assert lens.fit(model, prompts(model)[0], steps=3, lr=0.1) == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(torch.equal(p, old) for p, old in zip(lens.parameters(), before, strict=True))


def turned_model(norm):
    """The stream x before the last layer becomes x R + s there, R a rotation, for every x: relu(y) - relu(-y) = y.

    With LayerNorm: for streams of mean 0 and variance 1, as all are here.
    """
    d = 8
    shape = {"n_ctx": 8, "d_head": 4, "n_heads": 2, "d_vocab": 13, "d_mlp": 2 * d, "act_fn": "relu"}
    model = random_model(Config(n_layers=2, d_model=d, normalization_type=norm, **shape))
    R, s = torch.linalg.qr(torch.randn(d, d, generator=generator(5))).Q, torch.randn(d, generator=generator(6))
    first, last = model.blocks
    idle = [last.attn]
    if norm is None:
        first.attn.W_O.data.mul_(10)  # what comes from other positions is much of the stream
    else:
        W_E = model.embed.W_E.data
        W_E -= W_E.mean(dim=1, keepdim=True)
        W_E /= W_E.square().mean(dim=1, keepdim=True).sqrt()
        last.ln2.w.data.fill_(math.sqrt(1 + model.cfg.eps))
        last.ln2.b.data.zero_()
        idle += [model.pos_embed, first.attn, first.mlp]
    for part in idle:
        for parameter in part.parameters():
            parameter.data.zero_()
    eye, change = torch.eye(d), R - torch.eye(d)
    last.mlp.W_in.data.copy_(torch.cat([eye, -eye], dim=1))
    last.mlp.b_in.data.zero_()
    last.mlp.W_out.data.copy_(torch.cat([change, -change]))
    last.mlp.b_out.data.copy_(s)
    model.unembed.W_U.data.mul_(3)
    return model, R, s


@pytest.mark.parametrize("norm", [None, "LN"])
def test_a_rotated_and_shifted_stream_is_mended(norm):
    model, R, s = turned_model(norm)
    t = torch.randint(13, (50, 8), generator=generator(10**6))
    x = ll.streams(everything(model, t))
    assert close(x[2], x[1] @ R + s, 1e-4)  # it is what it says
    plain = kl_of(model, t)
    assert plain[1] > 1
    known = ll.TunedLens(2, 8)
    known.A.data[1], known.b.data[1] = R - torch.eye(8), s
    assert kl_of(model, t, known)[1].abs() < 1e-6  # the map is there to be found
    fitted = ll.TunedLens(2, 8)
    fitted.fit(model, lambda step: torch.randint(13, (16, 8), generator=generator(step)), steps=200, lr=0.1)
    tuned = kl_of(model, t, fitted)
    assert tuned[1] < 0.01 * plain[1]
    assert ll.logit_lens(model, fitted(x).detach()).kl_to_final()[1].mean().item() == pytest.approx(
        tuned[1].item(), abs=1e-4
    )
    if norm is None:  # but what is not there yet, from other positions, no map can find
        assert tuned[0] > 4 * tuned[1]


# How a logit is read


def of_row(position, row):
    return position if isinstance(position, int) else position[row].item()


def positions_of(batch):
    """For all rows, counted from either end, and for each row."""
    return (-1, 4, -9, torch.tensor([5, -9, 8])[:batch])


def answers(model, batch, seed=2):
    return torch.randint(model.cfg.d_vocab, (2, batch), generator=generator(seed))


def the_logit(logits, right, wrong, position):
    """Of `right`, less that of `wrong`, row by row."""
    found = []
    for row, per_position in enumerate(logits):
        at = per_position[of_row(position, row)]
        found.append(at[right[row]] - (0 if wrong is None else at[wrong[row]]))
    return torch.stack(found)


@kinds
@batches
def test_reading_is_the_model_with_its_last_scale_frozen(change, batch):
    """For any other stream: reading is affine, and it is the model's."""
    model = make(change)
    cache, (right, no) = everything(model, rows(model, batch)), answers(model, batch)
    final, (W_U, b_U) = cache["resid_post", model.cfg.n_layers - 1], model.unembed.parameters()
    others = (final, torch.zeros_like(final), *any_streams(model, batch))
    with frozen(model, final_scale(final, model.cfg.eps)):
        logits = [model(x, start_at_layer=model.cfg.n_layers) for x in others]
    for position, wrong in itertools.product(positions_of(batch), (None, no)):
        how = ll.reading(model, cache, right, wrong, position)
        assert how.direction.shape == (batch, model.cfg.d_model)
        assert how.ln_bias.shape == how.unembed_bias.shape == (batch,)
        for x, said in zip(others, logits, strict=True):
            read = [x[row, of_row(position, row)] @ how.direction[row] for row in range(batch)]
            found = torch.stack(read) + how.ln_bias + how.unembed_bias
            assert close(found, the_logit(said, right, wrong, position))
        assert torch.equal(how.unembed_bias, b_U[right] - (0 if wrong is None else b_U[wrong]))
        if model.cfg.normalization_type == "LN":
            u = W_U[:, right] - (0 if wrong is None else W_U[:, wrong])
            assert close(how.ln_bias, model.ln_final.b @ u, 1e-5)
        else:
            assert (how.ln_bias == 0).all()
        if has_norm(model):  # LayerNorm does not see the mean
            assert how.direction.sum(dim=-1).abs().max() < 1e-4 * how.direction.abs().max()


def test_reading_at_the_last_position_and_with_one_token_by_default():
    model = make({})
    cache, (right, wrong) = everything(model, rows(model)), answers(model, 3)
    assert torch.equal(ll.reading(model, cache, right).direction, ll.reading(model, cache, right, None, 8).direction)
    same = ll.reading(model, cache, right, right)  # a word against itself
    assert same.direction.abs().max() == same.ln_bias.abs().max() == same.unembed_bias.abs().max() == 0
    one, other = ll.reading(model, cache, right, wrong), ll.reading(model, cache, wrong, right)
    assert close(one.direction, -other.direction, 1e-6)
    how, values = ll.reading(model, cache, right, wrong), []
    for at in ({}, {"position": -1}, {"position": torch.tensor([8, -1, 8])}):
        values.append(
            (
                ll.attribution(model, cache, how, **at).values,
                ll.by_source(model, cache, how, **at),
                ll.by_neuron(model, cache, how, **at),
            )
        )
    for one, other in itertools.pairwise(values):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_reading_takes_the_scale_that_the_run_had():
    """A frozen scale too, which a hook has set."""
    model = make({})
    t, (right, wrong) = rows(model), answers(model, 3)
    with hooked(model, [("ln_final.hook_scale", lambda scale, hook: 2 * scale + 1)]):
        logits, cache = run_with_cache(model, t)
    parts = ll.attribution(model, cache, ll.reading(model, cache, right, wrong))
    assert close(parts.values.sum(dim=0), the_logit(logits, right, wrong, -1))


def test_reading_needs_the_last_stream_and_no_other():
    """What a run recorded of earlier layers must not be taken for the end."""
    model = make({})
    t, (right, _) = rows(model), answers(model, 3)
    _, early = run_with_cache(model, t, stop_at_layer=1)
    with pytest.raises(KeyError, match=r"blocks\.1\.hook_resid_post.* was not recorded"):
        ll.reading(model, early, right)
    _, last = run_with_cache(model, t, ["blocks.1.hook_resid_post", "ln_final.hook_scale"])
    assert close(ll.reading(model, last, right).direction, ll.reading(model, everything(model, t), right).direction)


@pytest.mark.parametrize("change", [{}, {"normalization_type": None}], ids=str)
def test_token_ids_that_there_are_not(change):
    model = make(change)
    cache, good = everything(model, rows(model)), torch.tensor([0, 49, 7])
    ll.reading(model, cache, good, good)
    for bad in ([0, 1, 50], [-1, 3, 4], [3, -50, 4], [10**9, 0, 0]):
        bad = torch.tensor(bad)
        for right, wrong in ((bad, None), (bad, good), (good, bad)):
            with pytest.raises(ValueError, match="one token id from 0 to 49 is needed for each of 3 rows"):
                ll.reading(model, cache, right, wrong)
    for n in (1, 2, 4):
        few = torch.zeros(n, dtype=torch.int64)
        for wrong in (None, few):
            with pytest.raises(ValueError, match="one token id from 0 to 49 is needed for each of 3 rows"):
                ll.reading(model, cache, few, wrong)


def test_positions_that_there_are_not():
    model = make({})
    cache, (right, _) = everything(model, rows(model)), answers(model, 3)
    how = ll.reading(model, cache, right)
    for bad in (9, -10, 100, torch.tensor([0, 9, 0]), torch.tensor([-10, 1, 2])):
        for call in (
            lambda: ll.reading(model, cache, right, position=bad),  # noqa: B023
            lambda: ll.attribution(model, cache, how, bad),  # noqa: B023
            lambda: ll.by_source(model, cache, how, bad),  # noqa: B023
            lambda: ll.by_neuron(model, cache, how, bad),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=r"positions go from -9 to 8: got \["):
                call()


# What each part contributes


def written(model, cache, t):
    """What every part wrote, from tokens, patterns' results and weights."""
    parts = {"embed": model.embed.W_E[t], "pos_embed": model.pos_embed.W_pos[: t.shape[1]].expand(len(t), -1, -1)}
    for i, block in enumerate(model.blocks):
        heads = torch.einsum("bphe,hed->bphd", cache["z", i], block.attn.W_O)
        parts[f"attn {i}"] = heads.sum(dim=2) + block.attn.b_O
        parts |= {f"L{i}H{h}": heads[:, :, h] for h in range(model.cfg.n_heads)}
        parts[f"b_O {i}"] = block.attn.b_O.expand_as(parts["embed"])
        if not model.cfg.attn_only:
            parts[f"MLP{i}"] = cache["post", i] @ block.mlp.W_out + block.mlp.b_out
    return parts


def read_by_hand(model, cache, x, right, wrong, position):
    """How far the vectors x [batch, pos, d_model] move the logit, row by row, in float64."""
    values = []
    for row in range(len(x)):
        at = of_row(position, row)
        y, final = x[row, at].double(), cache["resid_post", model.cfg.n_layers - 1][row, at].double()
        if has_norm(model):
            y = (y - y.mean()) / torch.sqrt(((final - final.mean()) ** 2).mean() + model.cfg.eps)
            y = y * model.ln_final.w.double() if model.cfg.normalization_type == "LN" else y
        moved = y @ model.unembed.W_U.double()
        values.append(moved[right[row]] - (0 if wrong is None else moved[wrong[row]]))
    return torch.stack(values)


def names_of(model, layers_with_heads):
    names = ["embed", "pos_embed"]
    for i in range(model.cfg.n_layers):
        heads = [*(f"L{i}H{h}" for h in range(model.cfg.n_heads)), f"b_O {i}"]
        names += heads if i in layers_with_heads else [f"attn {i}"]
        names += [] if model.cfg.attn_only else [f"MLP{i}"]
    return (*names, "ln_final", "b_U")


@kinds
@batches
def test_every_part_by_hand(change, batch):
    model = make(change)
    t, (right, wrong) = rows(model, batch), answers(model, batch)
    logits = model(t)
    last = model.cfg.n_layers - 1
    mixed = lambda name: name in model.hook_names or name == f"blocks.{last}.attn.hook_result"  # noqa: E731
    for names, heads in ((None, ()), (lambda name: True, range(last + 1)), (mixed, [last])):
        cache = run_with_cache(model, t, names)[1]
        vectors = written(model, cache, t)
        for position, other in itertools.product(positions_of(batch), (wrong, None)):
            how = ll.reading(model, cache, right, other, position)
            found = ll.attribution(model, cache, how, position)
            assert found.parts == names_of(model, heads)
            assert found.values.shape == (len(found.parts), batch)
            for name in found.parts[:-2]:
                assert close(found.of(name), read_by_hand(model, cache, vectors[name], right, other, position)), name
            assert torch.equal(found.of("ln_final"), how.ln_bias)
            assert torch.equal(found.of("b_U"), how.unembed_bias)
            assert close(found.values.sum(dim=0), the_logit(logits, right, other, position))


def test_a_part_by_its_name():
    values = torch.arange(6.0).view(3, 2)
    found = ll.Attribution(("embed", "L0H1", "b_O 0"), values)
    assert [found.of(name).tolist() for name in ("embed", "L0H1", "b_O 0")] == [[0, 1], [2, 3], [4, 5]]
    for name in ("L1H1", "b_O", "", "Embed"):
        with pytest.raises(KeyError, match=f"no part is called '{name}'; there are: embed, L0H1, b_O 0"):
            found.of(name)


def assert_parts_sum(model, draw, batches, positions):
    """To the logit, and to the difference of two, on prompts in batches, with heads alone and together."""
    for i in range(batches):
        t = draw(i)
        right, wrong = answers(model, len(t), seed=i)
        logits, cache = run_with_cache(model, t)
        apart = everything(model, t)
        of_each_row = torch.randint(-t.shape[1], t.shape[1], (len(t),), generator=generator(i))
        for position, other in ((positions[i], None), (of_each_row, wrong)):
            how = ll.reading(model, cache, right, other, position)
            expected = the_logit(logits, right, other, position)
            for recorded, parts in ((cache, 1), (apart, 1 + model.cfg.n_heads)):
                found = ll.attribution(model, recorded, how, position)
                assert len(found.parts) == 4 + (parts + 1) * model.cfg.n_layers
                assert (found.values.sum(dim=0) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_parts_sum_on_the_course_model(seed):
    """On 1,000 prompts: some of the corpus, some of random words."""
    model, rng = load("tinyworld", seed=seed), random.Random(seed)
    assert model.cfg.normalization_type == "LN"

    def draw(i):
        half = tinyworld.batch(rng, model.tokenizer, 125)[:, :10]
        return torch.cat([half, rows(model, 125, 10, seed=i)])

    assert_parts_sum(model, draw, 4, (-1, 5, -10, 9))


def test_parts_sum_on_the_shape_of_gpt2():
    shape = {"d_model": 48, "d_head": 4, "n_heads": 12, "d_mlp": 96, "d_vocab": 500, "n_ctx": 16}
    model = random_model(Config(n_layers=12, **shape))
    assert_parts_sum(model, lambda i: rows(model, 250, 7, seed=i), 4, (-1, 3, 0, -5))


# By source and by neuron


@kinds
@batches
def test_by_source_by_hand(change, batch):
    model = make(change)
    cfg, cache, (right, wrong) = model.cfg, everything(model, rows(model, batch)), answers(model, batch)
    for position in positions_of(batch):
        how = ll.reading(model, cache, right, wrong, position)
        parts = ll.attribution(model, cache, how, position)
        found = ll.by_source(model, cache, how, position)
        assert found.shape == (cfg.n_layers, cfg.n_heads, batch, 9)
        for layer, head in itertools.product(range(cfg.n_layers), range(cfg.n_heads)):
            assert close(found[layer, head].sum(dim=-1), parts.of(f"L{layer}H{head}"))
            moved = cache["v", layer][:, :, head] @ model.blocks[layer].attn.W_O[head]  # batch key d_model
            for key in range(9):
                x = cache["pattern", layer][:, head, :, key, None] * moved[:, key, None]
                assert close(found[layer, head, :, key], read_by_hand(model, cache, x, right, wrong, position), 1e-5)
        for row in range(batch):
            assert (found[:, :, row, of_row(position, row) % 9 + 1 :] == 0).all()  # nobody looks ahead


@kinds
@batches
def test_by_neuron_by_hand(change, batch):
    model = make(change)
    cfg, cache, (right, wrong) = model.cfg, everything(model, rows(model, batch)), answers(model, batch)
    for position in positions_of(batch):
        how = ll.reading(model, cache, right, wrong, position)
        if cfg.attn_only:
            with pytest.raises(ValueError, match="this model has no MLPs"):
                ll.by_neuron(model, cache, how, position)
            continue
        parts = ll.attribution(model, cache, how, position)
        found = ll.by_neuron(model, cache, how, position)
        assert found.shape == (cfg.n_layers, batch, cfg.d_mlp)
        for layer, block in enumerate(model.blocks):
            bias = (how.direction * block.mlp.b_out).sum(dim=-1)
            assert close(found[layer].sum(dim=-1) + bias, parts.of(f"MLP{layer}"))
            for neuron in range(cfg.d_mlp):
                x = cache["post", layer][:, :, neuron, None] * block.mlp.W_out[neuron]
                expected = read_by_hand(model, cache, x, right, wrong, position)
                assert close(found[layer, :, neuron], expected, 1e-5)


def test_by_source_makes_no_vector_for_each_source():
    """Each head's direction first, then the values: with d_model numbers for each key a GPT-2 would take ten times as long."""
    model = random_model(Config(n_layers=1, d_model=300, n_ctx=16, d_head=2, n_heads=3, d_vocab=10, attn_only=True))
    cache, (right, wrong) = everything(model, rows(model, 4, 16)), answers(model, 4)
    how = ll.reading(model, cache, right, wrong)
    with Largest() as largest:
        ll.by_source(model, cache, how)
    assert 0 < largest.entries < 4 * 16 * 3 * 300


def test_sources_and_neurons_on_the_course_model():
    model = load("tinyworld")
    t = tinyworld.batch(random.Random(0), model.tokenizer, 30)[:, :20]
    cache, (right, wrong) = everything(model, t), answers(model, 30)
    at = torch.randint(-20, 20, (30,), generator=generator())
    how = ll.reading(model, cache, right, wrong, at)
    parts = ll.attribution(model, cache, how, at)
    heads = torch.stack([parts.of(f"L{i}H{h}") for i in range(4) for h in range(6)]).view(4, 6, 30)
    assert (ll.by_source(model, cache, how, at).sum(dim=-1) - heads).abs().max() < 1e-4
    biases = torch.stack([how.direction @ block.mlp.b_out for block in model.blocks])
    mlps = torch.stack([parts.of(f"MLP{i}") for i in range(4)])
    assert (ll.by_neuron(model, cache, how, at).sum(dim=-1) + biases - mlps).abs().max() < 1e-4


# What a direction says


@kinds
def test_word_effects(change):
    """By hand in float64; and what one unit more of a direction adds to the logits, with the last scale held at 1."""
    model = make(change)
    p = {name: value.double() for name, value in model.state_dict().items()}
    t, directions = rows(model), torch.randn(5, model.cfg.d_model, generator=generator(7)) + 1
    found = ll.word_effects(model, directions)
    assert found.shape == (5, model.cfg.d_vocab)
    with frozen(model, torch.ones(1)):
        before = model(t)
        for direction, effects in zip(directions, found, strict=True):
            v = direction.double()
            if has_norm(model):
                v = (v - v.mean()) * p.get("ln_final.w", 1)
            expected = torch.stack([v @ p["unembed.W_U"][:, word] for word in range(model.cfg.d_vocab)])
            assert close(effects, expected - expected.mean())

            last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
            with hooked(model, [(last, lambda x, hook, v=direction: x + v)]):
                gain = model(t) - before
            assert close((gain - gain.mean(dim=-1, keepdim=True)), effects.expand_as(gain), 1e-3)
    assert not ll.word_effects(model.requires_grad_(), directions).requires_grad


# Ground truth


def only(found, expected):
    """All parts are 0 but for those given."""
    for part, values in zip(found.parts, found.values, strict=True):
        assert close(values, torch.as_tensor(expected.get(part, 0.0)).expand_as(values), 1e-4), part
    assert set(expected) <= set(found.parts)


def sentences(n=40):
    """Indirect-object sentences in one batch, each filled up after its end; their answers, S, and roles' positions."""
    rng = random.Random(0)
    made = [tinyworld.indirect_object(rng, held_out=i % 2 == 0) for i in range(n)]
    t = torch.zeros(n, tinyworld.N_CTX, dtype=torch.int64)
    for row, sentence in zip(t, made, strict=True):
        words = tinyworld.TOKENIZER.encode(sentence.prompt())[0]
        row[: len(words)] = words
    io, s = (torch.tensor([t[i, x.roles[role] + 1] for i, x in enumerate(made)]) for role in ("IO", "S2"))
    return t, io, s, {role: torch.tensor([x.roles[role] + 1 for x in made]) for role in ("IO", "S1", "S2", "END")}


def test_the_name_mover_says_it_all():
    wired = handmade.ioi_model(gain=7.0)
    (t, io, s, at), cfg = sentences(), wired.model.cfg
    assert (io != s).all()
    cache = everything(wired.model, t)
    how = ll.reading(wired.model, cache, io, s, at["END"])
    only(ll.attribution(wired.model, cache, how, at["END"]), {"L2H2": 7.0})
    sources = ll.by_source(wired.model, cache, how, at["END"])
    expected = torch.zeros(cfg.n_layers, cfg.n_heads, *t.shape)
    expected[2, 2, torch.arange(len(t)), at["IO"]] = 7.0
    assert close(sources, expected)
    for right, gain in ((io, 7.0), (s, 0.0)):
        how = ll.reading(wired.model, cache, right, position=at["END"])
        only(ll.attribution(wired.model, cache, how, at["END"]), {"L2H2": gain})
    together = run_with_cache(wired.model, t)[1]
    how = ll.reading(wired.model, together, io, s, at["END"])
    only(ll.attribution(wired.model, together, how, at["END"]), {"attn 2": 7.0})


def test_the_lens_sees_nothing_before_the_name_mover():
    model = handmade.ioi_model(gain=7.0).model
    t, io, _, at = sentences()
    lens, V = ll.logit_lens(model, ll.streams(everything(model, t))), model.cfg.d_vocab
    each = torch.arange(len(t))
    p = math.exp(7) / (math.exp(7) + V - 1)
    answer = io[:, None].expand_as(t)
    expected = torch.tensor([1 / V, 1 / V, 1 / V, p]).repeat(len(t), 1).T
    assert close(lens.probability(answer)[:, each, at["END"]], expected, 1e-5)
    assert (lens.rank(answer)[:, each, at["END"]] == 0).all()  # at first all are alike
    assert torch.equal(lens.top()[-1, each, at["END"], 0], io)
    q = (1 - p) / (V - 1)
    nats, alike = -p * math.log(p) - (1 - p) * math.log(q), math.log(V)
    expected = torch.tensor([alike, alike, alike, nats]).repeat(len(t), 1).T
    assert close(lens.entropy()[:, each, at["END"]], expected, 1e-4)
    assert close(lens.kl_to_final()[:, each, at["END"]], (alike - nats) * torch.tensor([1, 1, 1, 0])[:, None], 1e-4)


@pytest.mark.parametrize(
    ("build", "text", "sources"),
    [
        (handmade.induction_model, "a b c d e b", {2: [3]}),
        (handmade.induction_model, "a b c d a b d a", {1: [2], 5: [6]}),  # after both
        (handmade.shifted_induction_model, "a b c d e b", {2: [5]}),  # two further than the c that it says
    ],
    ids=["once", "twice", "shifted"],
)
def test_the_induction_head_says_it_all(build, text, sources):
    wired = build(gain=6.0)
    t = wired.model.tokenizer.encode(text)
    cache = everything(wired.model, t)
    (first, key), *more = ((a, k) for a, keys in sources.items() for k in keys)
    right, wrong = t[:, first + 1], wired.model.tokenizer.encode("l", bos=False)[0]
    how = ll.reading(wired.model, cache, right, wrong)
    share = 6.0 / (1 + len(more))
    said = sum(share for a in sources if t[0, a + 1] == right[0])
    only(ll.attribution(wired.model, cache, how), {"L1H0": said})
    expected = torch.zeros(2, 3, 1, t.shape[1])
    for a, k in ((first, key), *more):
        expected[1, 0, 0, k] = share * (t[0, a + 1] == right[0])
    assert close(ll.by_source(wired.model, cache, how), expected)


@pytest.mark.parametrize("relation", ["home", "job", "instrument"])
def test_the_reader_of_the_relation_says_it_all(relation):
    wired = handmade.fact_model(gain=9.0)
    model, head = wired.model, f"L1H{list(handmade.FACT_WORDS).index(relation)}"
    facts = [(subject, answer) for (*subject, r), answer in handmade.stored_facts().items() if r == relation]
    t = model.tokenizer.encode([f"the {first} {last} of old {relation}" for (first, last), _ in facts])
    right = torch.tensor([model.tokenizer.id(answer) for _, answer in facts])
    words = handmade.FACT_WORDS[relation]
    others = [words[(words.index(answer) + 1) % 4] for _, answer in facts]
    wrong = torch.tensor([model.tokenizer.id(word) for word in others])
    cache = everything(model, t)
    how = ll.reading(model, cache, right, wrong)
    only(ll.attribution(model, cache, how), {head: 9.0})
    expected = torch.zeros(2, 4, len(t), t.shape[1])
    expected[1, int(head[-1]), :, 3] = 9.0  # where both names have met
    assert close(ll.by_source(model, cache, how), expected)
    assert ll.by_neuron(model, cache, how).abs().max() == 0  # they know it, and say it only through the reader


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("build", [handmade.induction_model, handmade.ioi_model, handmade.fact_model])
def test_parts_of_the_controls_still_sum(build, seed):
    wired = build()
    control = handmade.circuit_free(wired, seed)
    words = control.unembed.W_U.abs().sum(dim=0).nonzero()[:, 0]  # those that it can say
    t = words[torch.randint(len(words), (5, 12), generator=generator(seed))]
    logits, right, wrong = control(t), words[:5], words[5:10]
    cache = everything(control, t)
    for position in (-1, 4, torch.tensor([1, 11, -3, 5, -10])):
        how = ll.reading(control, cache, right, wrong, position)
        found = ll.attribution(control, cache, how, position)
        expected = the_logit(logits, right, wrong, position)
        scale = found.values.abs().max().clamp_min(1)
        assert (found.values.sum(dim=0) - expected).abs().max() < 1e-5 * scale
        heads = [name for name in found.parts if "H" in name]
        said = torch.stack([found.of(name).abs().sum() for name in heads])
        assert said.max() < 0.8 * said.sum()  # and no head says it all
        by_key = ll.by_source(control, cache, how, position).sum(dim=-1)
        for name in heads:
            assert close(by_key[int(name[1]), int(name[3])] / scale, found.of(name) / scale, 1e-5)


# TransformerLens


@pytest.mark.parametrize(
    "change",
    [{}, {"normalization_type": "LNPre", "eps": 0.1, **ATTENTION_ONLY}, {"normalization_type": None}],
    ids=str,
)
def test_peer_lens_and_attribution(change):
    lens = pytest.importorskip("transformer_lens", reason="TransformerLens is not installed")
    model = make(change)
    model = fold_layer_norm(model) if model.cfg.normalization_type == "LN" else model  # theirs asks for that
    cfg = model.cfg
    settings = {name: value for name, value in vars(cfg).items() if not (cfg.attn_only and name in ("d_mlp", "act_fn"))}
    theirs = lens.HookedTransformer(lens.HookedTransformerConfig(**settings, device="cpu"))
    theirs.load_state_dict(model.state_dict(), strict=False)
    t, (right, wrong) = rows(model), answers(model, 3)
    with torch.no_grad():
        _, other = theirs.run_with_cache(t)
        cache = everything(model, t)
        x = ll.streams(cache)
        assert close(x, other.accumulated_resid())
        normed = other.accumulated_resid(apply_ln=True)
        expected = (normed @ theirs.W_U + theirs.b_U).log_softmax(dim=-1)
        assert close(ll.logit_lens(model, x).log_probs, expected)
        scaled = other.apply_ln_to_stack(other.accumulated_resid(), layer=-1)
        expected = (scaled @ theirs.W_U + theirs.b_U).log_softmax(dim=-1)
        assert close(ll.logit_lens(model, x, norm="last").log_probs, expected)

        for position, no in itertools.product((-1, 4), (wrong, None)):
            at = position % 9
            stack, labels = other.get_full_resid_decomposition(
                expand_neurons=False, pos_slice=at, return_labels=True, apply_ln=False
            )
            expected = dict(zip(labels, other.logit_attrs(stack, right, no, pos_slice=at), strict=True))
            how = ll.reading(model, cache, right, no, position)
            found = ll.attribution(model, cache, how, position)
            biases = sum(found.of(f"b_O {layer}") for layer in range(cfg.n_layers))
            assert close(biases, expected.pop("bias"))
            for label, values in expected.items():
                assert close(found.of(f"MLP{label[0]}" if label.endswith("mlp_out") else label), values), label
            assert len(expected) == len(found.parts) - cfg.n_layers - 2
            if not cfg.attn_only:
                stack = other.stack_neuron_results(-1, pos_slice=at)
                expected = other.logit_attrs(stack, right, no, pos_slice=at).view(cfg.n_layers, cfg.d_mlp, 3)
                assert close(ll.by_neuron(model, cache, how, position), expected.transpose(1, 2))
