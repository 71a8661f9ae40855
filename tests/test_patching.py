"""Patching: sweeps against one run at a time, attribution against finite differences, and hand-wired circuits as truth."""

import copy
import itertools

import pytest
import torch

from interp_edu import handmade, patching
from interp_edu.hooks import hook_name, hooked, run_with_cache
from interp_edu.metrics import Metric, kl_divergence, logit_difference, probability
from interp_edu.patching import SITES, Patch, Patching, by_unit, mean_activations, noised
from interp_edu.transformer import Config
from tests.test_transformer import SHAPE, random_model, tokens

KINDS = [
    {},
    {"attn_only": True, "d_mlp": 0},
    {"normalization_type": None, "act_fn": "relu"},
    {"normalization_type": "LNPre", "n_layers": 3, "act_fn": "gelu"},
]


def experiment(change=None, batch=3, length=7, same=2, metric=None, double=False, **options):
    """A random model and prompts of which the first tokens are the same; by default every row is read elsewhere."""
    model = random_model(Config(**{**vars(SHAPE), "d_mlp": 9, **(change or {})}))
    clean, corrupted = tokens(batch, length), tokens(batch, length, seed=1)
    corrupted[:, :same] = clean[:, :same]
    right, wrong = torch.arange(batch), torch.arange(batch) + 20
    metric = metric or logit_difference(right, wrong, [-1, length // 2, -2][:batch])
    return Patching(model.double() if double else model, clean, corrupted, metric, **options)


def one_by_one(p, site, axes, window=1):
    """The sweep by ordinary hooks: what its axes say, written out."""
    sizes = by_unit(hook_name(site, 0), p.base[site, 0]).shape
    ranges = {"layer": p.model.cfg.n_layers, "pos": sizes[1], "head": sizes[2], "neuron": sizes[2]}
    values = []
    for labels in itertools.product(*(range(ranges[axis]) for axis in axes)):
        at = dict(zip(axes, labels, strict=True))
        layers = range(ranges["layer"])
        if "layer" in at:
            layers = [i for i in layers if -(window // 2) <= i - at["layer"] < (window + 1) // 2]
        positions = [at["pos"]] if "pos" in at else None
        units = [at[axis] for axis in ("head", "neuron") if axis in at] or None
        values.append(p.patched([Patch(hook_name(site, i), positions, units) for i in layers]))
    return torch.tensor(values).view([ranges[axis] for axis in axes])


def same(a, b, tolerance=1e-5):
    return torch.allclose(a, b, atol=tolerance * max(1.0, b.abs().max().item()), rtol=0)


def sources(p):
    reference = tokens(5, p.tokens.shape[1], seed=2)
    return {
        "the other run": None,
        "zero": "zero",
        "mean": mean_activations(p.model, reference),
        "resample": tokens(*p.tokens.shape, seed=3),
    }


# The sweeps --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "batch", "denoise"),
    [(KINDS[0], 3, True), (KINDS[1], 1, False), (KINDS[2], 2, False), (KINDS[3], 1, True)],
)
def test_every_sweep_is_the_same_as_one_run_at_a_time(change, batch, denoise):
    p = experiment(change, batch, length=5, same=1, denoise=denoise)
    for site in SITES:
        if hook_name(site, 0) not in p.base:
            continue
        cases = [(("layer", "pos"), 1), (("pos",), 1), (("layer",), 3)]
        cases += [(("pos", "layer"), 2)] if site in ("attn_out", "mlp_out", "k") else []
        cases += [(("layer", "head"), 1), (("head", "pos"), 1)] if patching.UNIT.get(site) == "head" else []
        cases += [(("neuron", "layer"), 1)] if site == "post" else []
        for axes, window in cases:
            assert same(p.sweep(site, axes, window=window).values, one_by_one(p, site, axes, window)), (site, axes)
    assert p.sweep("z").axes == ["layer", "head"]
    assert p.sweep("z", ("head", "pos", "layer")).values.shape == (3, 5, p.model.cfg.n_layers)


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("change", KINDS[:2], ids=str)
def test_other_sources(change, kind):
    source = sources(experiment(change))[kind]
    p = experiment(change, denoise=False, source=source)
    for site, axes in [
        ("z", ("layer", "head")),
        ("z", ("head", "pos")),
        ("attn_out", ("layer", "pos")),
        ("k", ("head",)),
    ]:
        assert same(p.sweep(site, axes).values, one_by_one(p, site, axes))
    assert p.sweep("z").base == 1


@pytest.mark.parametrize("metric", [probability([3, 4, 5], [-1, 4, -2]), probability(7), logit_difference(1, 2, 3)])
def test_other_metrics(metric):
    p = experiment(metric=metric)
    for site in ("resid_mid", "z"):
        assert same(p.sweep(site, ("layer", "pos")).values, one_by_one(p, site, ("layer", "pos")))


def test_the_batch_size_bounds_the_rows_and_changes_nothing(monkeypatch):
    rows = []

    def counted(q, k, v):
        rows.append(len(q))
        return patching_attention(q, k, v)

    patching_attention = patching.attention
    monkeypatch.setattr(patching, "attention", counted)
    everything = experiment(batch_size=10_000).sweep("z", ("layer", "head", "pos")).values
    assert (
        max(rows) == 2 * 3 * 5 * 3 - 3 * 5 * 3
    )  # those of the last layer come after its attention; two positions are the same
    for batch_size in (3, 4, 16, 50):
        rows.clear()
        p = experiment(batch_size=batch_size)
        assert same(p.sweep("z", ("layer", "head", "pos")).values, everything)
        assert max(rows) <= batch_size
        assert same(p.sweep("resid_pre").values, one_by_one(p, "resid_pre", ("layer", "pos")))
        assert max(rows) <= batch_size


def test_any_lists_of_patches_together():
    p = experiment(KINDS[3])
    cells = [
        [],
        [Patch("blocks.0.attn.hook_q", [3], [0, 2]), Patch("blocks.2.mlp.hook_post", [-1, 4], [1, 5, 8])],
        [
            Patch("blocks.2.attn.hook_z", None, [1]),
            Patch("blocks.0.hook_mlp_out", [6]),
            Patch("blocks.1.attn.hook_v", [2]),
        ],
        [Patch("blocks.1.hook_resid_post", [5]), Patch("blocks.1.hook_resid_mid", [3, 4])],
        [Patch("blocks.0.hook_resid_pre")],
        [Patch("blocks.1.hook_attn_out", [0, 1])],  # where both prompts are the same
    ]
    values = p.many(cells)
    assert same(values, torch.tensor([p.patched(cell) for cell in cells]))
    assert values[[0, 5]].tolist() == [0, 0]
    assert values[4].item() == pytest.approx(1, abs=1e-5)
    assert p.many([]).shape == (0,)


@pytest.mark.parametrize("denoise", [True, False])
def test_patching_everything_gives_the_other_run_and_nothing_changes_nothing(denoise):
    p = experiment(denoise=denoise)
    base, other = (0, 1) if denoise else (1, 0)
    assert p.patched([]) == pytest.approx(base, abs=1e-5)
    assert p.patched([Patch("hook_embed")]) == pytest.approx(other, abs=1e-4)
    assert p.sweep("resid_pre", ("layer",)).values.tolist() == pytest.approx([other] * 2, abs=1e-4)
    assert p.sweep("resid_post", ("layer",), pos=[0, 1]).values.tolist() == pytest.approx([base] * 2, abs=1e-6)
    last = p.sweep("resid_post", ("layer",), layer=[-1], pos=[-1, 3, -2])
    assert last.values.tolist() == pytest.approx([other], abs=1e-4)
    assert last.raw.item() == pytest.approx(p.clean if denoise else p.corrupted, abs=1e-4)
    assert p.sweep("z", ("pos",), pos=[0]).raw.item() == pytest.approx(p.corrupted if denoise else p.clean, abs=1e-5)


def test_patched_takes_any_hook_point_and_heeds_other_hooks():
    p = experiment()
    assert p.patched([Patch("blocks.1.attn.hook_pattern", [5, 6], [0])]) != pytest.approx(0, abs=1e-4)
    swapped = p.patched([Patch("blocks.1.attn.hook_pattern", units=[0]), Patch("blocks.1.attn.hook_v", units=[0])])
    assert swapped == pytest.approx(p.sweep("z").at(layer=1, head=0).item(), abs=1e-5)
    assert p.patched([Patch("ln_final.hook_scale")]) != pytest.approx(0, abs=1e-6)
    with hooked(p.model, [("blocks.1.hook_mlp_out", lambda x, hook: torch.zeros_like(x))]):
        without = p.patched([Patch("blocks.0.hook_resid_post", [5])])
        with pytest.raises(ValueError, match=r"hooks are attached at blocks\.1\.hook_mlp_out"):
            p.sweep("z")
        with pytest.raises(ValueError, match="would be ignored"):
            p.attribution("z")
    assert without != pytest.approx(p.patched([Patch("blocks.0.hook_resid_post", [5])]), abs=1e-4)


def test_gradients_that_are_wanted_do_not_matter():
    p, q = experiment(), experiment()
    q.model.requires_grad_()
    assert same(q.sweep("z").values, p.sweep("z").values)
    assert same(q.attribution("z").values, p.attribution("z").values)
    assert q.model.blocks[0].attn.W_Q.grad is None
    assert not p.sweep("z").values.requires_grad
    assert not p.attribution("z").values.requires_grad


# Metrics -----------------------------------------------------------------------------------------


def test_divergence_from_the_clean_run():
    model, clean, corrupted = random_model(), tokens(2, 6), tokens(2, 6, seed=1)
    p = Patching(model, clean, corrupted, kl_divergence(model(clean)))
    assert p.clean == pytest.approx(0, abs=1e-5)
    assert p.corrupted > 0.01
    assert same(p.sweep("mlp_out").values, one_by_one(p, "mlp_out", ("layer", "pos")))


# Ablation ----------------------------------------------------------------------------------------


def test_zero_ablation_is_the_same_as_weights_of_zero():
    p = experiment(denoise=False, source="zero")
    raw = p.sweep("z").raw
    for layer, head in itertools.product(range(2), range(3)):
        edited = copy.deepcopy(p.model)
        edited.blocks[layer].attn.W_O.data[head] = 0
        assert raw[layer, head].item() == pytest.approx(p.metric(edited(p.tokens)).item(), abs=1e-4)
    edited = copy.deepcopy(p.model)
    edited.blocks[1].mlp.W_out.data[7] = 0
    assert p.sweep("post", layer=[1]).at(layer=1, neuron=7) == pytest.approx(
        p._normalised(p.metric(edited(p.tokens))).item(), abs=1e-4
    )


def test_mean_and_resample_ablation_put_what_they_say():
    base = experiment(denoise=False)
    for kind, source in sources(base).items():
        if kind in ("the other run", "zero"):
            continue
        p = experiment(denoise=False, source=source)
        reference = tokens(5, 7, seed=2) if kind == "mean" else source
        _, cache = run_with_cache(p.model, reference)

        def put(x, hook, cache=cache, kind=kind):
            z = cache[hook.name]
            x[:, :, 2] = z.mean(dim=0)[:, 2] if kind == "mean" else z[:, :, 2]

        with hooked(p.model, [("blocks.0.attn.hook_z", put)]):
            expected = p.metric(p.model(p.tokens)).item()
        assert p.sweep("z").raw[0, 2].item() == pytest.approx(expected, abs=1e-4)


# Attribution -------------------------------------------------------------------------------------


def test_attribution_is_exact_where_the_metric_is_linear():
    p = experiment(KINDS[2])
    last = {"layer": [-1]}
    for site in ("resid_post", "mlp_out"):
        assert same(p.attribution(site, **last).values, p.sweep(site, **last).values)
    assert same(
        p.attribution("post", ("neuron", "pos"), **last).values, p.sweep("post", ("neuron", "pos"), **last).values
    )
    attn_only = experiment({**KINDS[1], "normalization_type": None})
    for site, axes in [("z", ("layer", "head")), ("z", ("pos", "head")), ("v", ("head", "pos")), ("attn_out", ())]:
        assert same(attn_only.attribution(site, axes, **last).values, attn_only.sweep(site, axes, **last).values)


@pytest.mark.parametrize("change", [{}, KINDS[3]], ids=str)
def test_attribution_against_finite_differences(change):
    """A source that is only a little way from the base: sweeps and attribution agree to first order."""
    p = experiment(change, double=True)
    step = 1e-4
    near = {name: p.base[name] + step * (p.source[name] - p.base[name]) for name in p.entries}
    small = experiment(change, double=True, source=near)
    cases = [
        ("resid_pre", ()),
        ("z", ()),
        ("k", ("head", "layer", "pos")),
        ("q", ("layer",)),
        ("post", ()),
        ("mlp_out", ()),
    ]
    for site, axes in cases:
        exact, first = small.sweep(site, axes), small.attribution(site, axes)
        assert torch.allclose(first.values, exact.values, atol=0.001 * exact.values.abs().max().item(), rtol=0), site
        assert (first.axes, first.labels) == (exact.axes, exact.labels)
        assert torch.allclose(first.values / step, p.attribution(site, axes).values)
    alone = p.attribution("mlp_out").values
    together = torch.stack([alone[max(0, i - 1) : i + 2].sum(dim=0) for i in range(len(alone))])
    assert torch.allclose(p.attribution("mlp_out", window=3).values, together)
    assert torch.allclose(p.attribution("mlp_out", ("pos",), window=3).values, alone.sum(dim=0))


def test_attribution_needs_one_forward_and_one_backward_pass(monkeypatch):
    p, runs = experiment(), []
    run = type(p.model).run
    monkeypatch.setattr(type(p.model), "run", lambda *args: runs.append(1) or run(*args))
    for site in SITES:
        p.attribution(site)
    assert len(runs) == 1


# Circuits that are known -------------------------------------------------------------------------


def found(sweep, threshold=0.01):
    return {labels for labels, value in sweep.top(sweep.values.numel()) if abs(value - sweep.base) > threshold}


@pytest.mark.parametrize("denoise", [True, False])
def test_finds_the_induction_circuit_and_nothing_else(denoise):
    wired = handmade.induction_model()
    t = wired.model.tokenizer
    # The letter before b changes: only what the previous-token head says at b does.
    clean, corrupted = t.encode("c a b d a"), t.encode("c e b d a")
    p = Patching(wired.model, clean, corrupted, logit_difference(t.id("b"), t.id("d")), denoise=denoise)
    heads = p.sweep("z", ("layer", "head", "pos"))
    assert found(heads) == {(0, 1, 3), (1, 0, 5)}  # at the successor, and at END
    assert all(abs(value - (1 - heads.base)) < 1e-4 for _, value in heads.top(2))
    assert found(p.sweep("z")) == {(0, 1), (1, 0)}
    assert found(p.sweep("resid_pre")) == {(0, 2), (1, 3)}
    assert found(p.sweep("k", ("layer", "head", "pos"))) == {(1, 0, 3)}
    assert found(p.sweep("q", ("layer", "head"))) == set()
    assert found(p.sweep("v", ("layer", "head", "pos"))) == {(0, 1, 2)}


def test_finds_the_indirect_object_circuit_and_nothing_else():
    wired = handmade.ioi_model()
    t = wired.model.tokenizer
    clean = t.encode("When Mary and John went to the store , John gave a book to")
    corrupted = t.encode("When Mary and John went to the store , Mary gave a book to")
    s2, end = 10, 14
    for denoise in (True, False):
        p = Patching(wired.model, clean, corrupted, logit_difference(t.id("Mary"), t.id("John")), denoise=denoise)
        assert p.clean == pytest.approx(10, abs=1e-3)
        assert p.corrupted == pytest.approx(-10, abs=1e-3)
        heads = p.sweep("z", ("layer", "head", "pos"))
        assert found(heads) == {(0, 0, s2), (1, 1, end), (2, 2, end)}
        assert set(wired.heads()) == found(p.sweep("z"))
        assert all(abs(value - (1 - heads.base)) < 1e-4 for _, value in heads.top(3))
        assert found(p.sweep("resid_pre")) == {(0, s2), (1, s2), (2, end)}
        assert {(layer, head) for layer, head, _ in found(p.sweep("q", ("layer", "head", "pos")))} == {(0, 0), (2, 2)}
        assert found(p.sweep("v", ("layer", "head", "pos"))) == {(1, 1, s2)}


@pytest.mark.parametrize(("word", "relation"), [("home", 0), ("job", 1), ("instrument", 2)])
def test_finds_the_fact_store_and_nothing_else(word, relation):
    wired = handmade.fact_model()
    t, facts = wired.model.tokenizer, handmade.stored_facts()
    (first, other), last = handmade.FACT_FIRST[:2], handmade.FACT_LAST[1]
    clean, corrupted = (t.encode(f"the old {name} {last} is well {word}") for name in (first, other))
    right, wrong = (t.id(facts[name, last, word]) for name in (first, other))
    p = Patching(wired.model, clean, corrupted, logit_difference(right, wrong))
    subject, end = 4, 7
    assert found(p.sweep("z", ("layer", "head", "pos"))) == {(0, 0, subject), (1, relation, end)}
    assert found(p.sweep("mlp_out")) == {(0, subject)}
    assert p.sweep("mlp_out").at(layer=0, pos=subject).item() == pytest.approx(1, abs=1e-4)
    neurons = p.sweep("post", ("neuron", "pos"), layer=[0])
    ones = {4 * handmade.FACT_FIRST.index(name) + handmade.FACT_LAST.index(last) for name in (first, other)}
    assert found(neurons) == {(neuron, subject) for neuron in ones}
    assert found(p.sweep("post", ("layer", "neuron"))) == {(0, neuron) for neuron in ones}


@pytest.mark.parametrize(
    ("inputs", "needed", "sufficient", "necessary"),
    [(2, 2, False, True), (2, 1, True, False), (6, 4, False, False), (1, 1, True, True)],
    ids=["and", "or", "vote", "wire"],
)
def test_one_direction_alone_misleads_about_gates(inputs, needed, sufficient, necessary):
    wired = handmade.gate_model(inputs, needed)
    t = wired.model.tokenizer
    clean, corrupted = (t.encode(" ".join([bit] * inputs + ["="])) for bit in "10")
    for denoise, seen in ((True, sufficient), (False, necessary)):
        p = Patching(wired.model, clean, corrupted, logit_difference(t.id("yes"), t.id("no")), denoise=denoise)
        assert found(p.sweep("z")) == ({(0, i) for i in range(inputs)} if seen else set())
        heads = Patch("blocks.0.attn.hook_z", units=range(inputs))
        assert p.patched([heads]) == pytest.approx(float(denoise), abs=1e-4)
        assert found(p.sweep("mlp_out")) == {(0, inputs + 1)}


def test_in_a_model_without_a_circuit_nothing_stands_out():
    """Over many sentences, no head at any position carries much; in the wired model, three of them carry all."""
    wired = handmade.ioi_model()
    t, pairs = wired.model.tokenizer, list(itertools.permutations(["Mary", "John", "Tom", "Anna", "Lucy"], 2))
    text = "When {} and {} went to the store , {} gave a book to"
    clean = t.encode([text.format(a, b, b) for a, b in pairs])
    corrupted = t.encode([text.format(a, b, a) for a, b in pairs])
    io, s = ([t.id(pair[i]) for pair in pairs] for i in (0, 1))
    for seed in (None, 0, 1, 2, 3):
        model = wired.model if seed is None else handmade.circuit_free(wired, seed)
        p = Patching(model, clean, corrupted, logit_difference(io, s) if seed is None else kl_divergence(model(clean)))
        carried = (p.sweep("z", ("layer", "head", "pos")).values > 0.9).sum().item()
        assert carried == (3 if seed is None else 0)


def test_noise_is_a_word_that_nobody_knows():
    model, clean = random_model(), tokens(3, 6)
    where = torch.zeros_like(clean, dtype=torch.bool)
    where[[0, 1, 1, 2], [2, 2, 4, 0]] = True
    before = {name: x.clone() for name, x in model.state_dict().items()}
    other, corrupted = noised(model, clean, where, scale=2.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other(clean), model(clean))
    assert torch.equal(corrupted[~where], clean[~where])
    assert sorted(corrupted[where].tolist()) == list(range(model.cfg.d_vocab, model.cfg.d_vocab + 4))
    drawn = torch.randn(4, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    noise = 2.0 * model.embed.W_E.std() * drawn

    def add(x, hook):
        x[where] += noise

    with hooked(model, [("hook_embed", add)]):
        assert same(other(corrupted), model(clean))
    p = Patching(other, clean, corrupted, logit_difference(1, 2))
    assert same(p.sweep("resid_pre").values, one_by_one(p, "resid_pre", ("layer", "pos")))
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert other.blocks[0] is model.blocks[0]
    with pytest.raises(ValueError, match=f"ids go from 0 to {model.cfg.d_vocab - 1}"):
        model(corrupted)


# What comes out, and what is refused -------------------------------------------------------------


def test_a_sweep_knows_its_axes():
    p = experiment()
    s = p.sweep("z", ("pos", "head"), layer=[1], pos=[-1, 3], head=[2, 0])
    assert (s.axes, s.labels, s.base) == (["pos", "head"], {"pos": [6, 3], "head": [2, 0]}, 0)
    full = p.sweep("z", ("layer", "head", "pos"))
    assert s.at(pos=3, head=2).item() == pytest.approx(full.at(layer=1, pos=3, head=2).item(), abs=1e-5)
    assert same(s.values[0], full.values[1, [2, 0], 6])
    assert same(full.at(layer=1, pos=6)[[2, 0]], s.at(pos=6))
    assert same(s.raw, p.corrupted + s.values * (p.clean - p.corrupted))
    top = full.top(3)
    assert [abs(value) for _, value in top] == full.values.abs().flatten().sort(descending=True).values[:3].tolist()
    assert all(full.at(**dict(zip(full.axes, labels, strict=True))).item() == value for labels, value in top)
    assert p.sweep("post", layer=[0]).axes == ["layer", "neuron"]
    with pytest.raises(ValueError, match=r"there is no \{'head': 1\} in this sweep of"):
        s.at(head=1)
    with pytest.raises(ValueError, match="there is no"):
        s.at(layer=1)


def test_windows_are_centred_and_cut_off_at_the_ends():
    p = experiment({"n_layers": 5}, batch=1)
    for window, layer, expected in [(1, 2, [2]), (2, 2, [1, 2]), (3, 2, [1, 2, 3]), (3, 0, [0, 1]), (4, 4, [2, 3, 4])]:
        value = p.sweep("attn_out", window=window).at(layer=layer, pos=6).item()
        together = p.patched([Patch(f"blocks.{i}.hook_attn_out", [6]) for i in expected])
        assert value == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.sweep("resid"), "no site 'resid' to sweep: choose one of resid_pre, q, k, v, z, attn_out"),
        (lambda p: p.sweep("pattern"), "no site 'pattern'"),
        (lambda p: p.sweep("z", ("layer", "neuron")), "z has the axes layer, pos, head, once each, not"),
        (lambda p: p.sweep("z", ("head", "head")), "once each"),
        (lambda p: p.sweep("z", neuron=[3]), "once each"),
        (lambda p: p.sweep("z", window=0), "window >= 1"),
        (lambda p: p.sweep("z", layer=[2]), "there is no layer 2: they go from 0 to 1"),
        (lambda p: p.sweep("z", head=[3]), "there is no head 3: they go from 0 to 2"),
        (lambda p: p.attribution("z", pos=[7]), "there is no pos 7: they go from 0 to 6"),
        (lambda p: p.patched([Patch("blocks.0.attn.hook_z", [7])]), "there is no position 7: they go from 0 to 6"),
        (lambda p: p.patched([Patch("blocks.0.attn.hook_z", units=[3])]), "there is no head 3"),
        (lambda p: p.many([[Patch("blocks.0.ln1.hook_scale")]]), "only `patched` takes it"),
    ],
)
def test_what_is_not_there(call, words):
    with pytest.raises(ValueError, match=words):
        call(experiment())


def test_an_unknown_hook_point():
    with pytest.raises(KeyError, match="nearest are"):
        experiment().patched([Patch("blocks.0.hook_z")])


def test_prompts_that_cannot_be_compared():
    model, metric = random_model(), logit_difference(1, 2)
    with pytest.raises(ValueError, match=r"clean has shape \[2, 6\], corrupted \[2, 7\].*same number of tokens"):
        Patching(model, tokens(2, 6), tokens(2, 7), metric)
    with pytest.raises(ValueError, match=r"source \[1, 6\]"):
        Patching(model, tokens(2, 6), tokens(2, 6, 1), metric, source=tokens(1, 6))
    with pytest.raises(ValueError, match="no scale from 0 to 1"):
        Patching(model, tokens(2, 6), tokens(2, 6), metric)
    other = tokens(2, 6)
    other[:, 4:] = (other[:, 4:] + 1) % 50
    with pytest.raises(ValueError, match="do the prompts differ before it"):
        Patching(model, tokens(2, 6), other, logit_difference(1, 2, position=3))
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        Patching(model, tokens(2, 6), tokens(2, 6, 1), metric, batch_size=1)
    with pytest.raises(ValueError, match="source must be 'zero'"):
        Patching(model, tokens(2, 6), tokens(2, 6, 1), metric, source="mean")
    with pytest.raises(ValueError, match="there is no position 6"):
        Patching(model, tokens(2, 6), tokens(2, 6, 1), logit_difference(1, 2, position=6))
    for wrong in (logit_difference([1, 2, 3], 4), logit_difference(1, 2, [3, 4, 5]), probability([1, 2, 3])):
        with pytest.raises(ValueError, match="there are 1 rows, but the metric has numbers for"):
            Patching(model, tokens(1, 6), tokens(1, 6, 1), wrong)
    with (
        hooked(model, [("hook_embed", lambda x, hook: x)]),
        pytest.raises(ValueError, match="hooks are attached at hook_embed"),
    ):
        Patching(model, tokens(2, 6), tokens(2, 6, 1), metric)


def test_values_that_are_not_finite():
    model, t = random_model(), (tokens(2, 6), tokens(2, 6, 1))
    with pytest.raises(ValueError, match="the metric is not finite"):
        Patching(model, *t, Metric(lambda logits: logits[..., 0] / 0))
    source = {name: x * torch.inf for name, x in run_with_cache(model, t[0])[1].items()}
    p = Patching(model, *t, logit_difference(1, 2), source=source)
    with pytest.raises(ValueError, match="is something infinite or NaN"):
        p.sweep("z")
    with pytest.raises(ValueError, match="is something infinite or NaN"):
        p.patched([Patch("blocks.0.attn.hook_z")])
