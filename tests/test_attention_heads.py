"""Circuits of heads, against full matrices in float64, closed forms and hand-wired models, and TransformerLens's own if it is installed."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from interp_edu import attention_heads as ah
from interp_edu import handmade, tinyworld
from interp_edu.attention_heads import LowRank
from interp_edu.folding import fold_layer_norm
from interp_edu.hooks import hooked, run_with_cache
from interp_edu.pretrained import load
from interp_edu.transformer import Config
from tests.test_transformer import SHAPE, random_model, tokens

ATTENTION_ONLY = {"attn_only": True, "d_mlp": 0}
KINDS = [
    {},  # LayerNorm, folded
    {"normalization_type": "LNPre"},  # its matrices still read along (1, ..., 1)
    {"normalization_type": None},
    {"normalization_type": "LNPre", "eps": 0.1, **ATTENTION_ONLY},
    {"normalization_type": None, **ATTENTION_ONLY},
]
kinds = pytest.mark.parametrize("change", KINDS, ids=str)
HEADS = list(itertools.product(range(SHAPE.n_layers), range(SHAPE.n_heads)))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def readable(change, seed=0):
    """A model of all parameters random, which the functions here can read: folded if it has LayerNorm weights."""
    model = random_model(Config(**{**vars(SHAPE), **change}), seed)
    return fold_layer_norm(model) if model.cfg.normalization_type == "LN" else model


def heads_matrices(model, layer, head):
    """W_Q, W_K, W_V, W_O, b_Q, b_K, b_V of one head in float64."""
    p = model.state_dict()
    names = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
    return [p[f"blocks.{layer}.attn.{name}"][head].double() for name in names]


def norm_by_hand(model, x):
    if model.cfg.normalization_type is None:
        return x
    x = x - x.mean()
    return x / torch.sqrt((x**2).mean() + model.cfg.eps)


def close(x, expected, tolerance=1e-4):
    """Equal but for rounding, relative to the largest entry."""
    return (x.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


# The product of two thin matrices


def assert_same_numbers(found, expected):
    """The same complex numbers in any order, but for zeros."""
    expected = list(expected)
    expected += [torch.zeros((), dtype=found.dtype)] * (len(found) - len(expected))
    for number in found:
        nearest = min(range(len(expected)), key=lambda i: abs(expected[i] - number))
        assert abs(expected.pop(nearest) - number) < 1e-8
    assert all(abs(number) < 1e-8 for number in expected)


SIZES = [
    ((), 7, 3, 7),
    ((), 7, 3, 9),
    ((4,), 6, 1, 6),
    ((2, 3), 9, 4, 5),
    ((2, 3), 5, 8, 5),  # more rank than rows or columns
    ((2,), 4, 6, 9),
    ((), 9, 6, 4),
    ((1,), 5, 5, 5),
]


@pytest.mark.parametrize(("lead", "rows", "rank", "columns"), SIZES)
def test_low_rank_is_its_full_matrix(lead, rows, rank, columns):
    left, right = draw(*lead, rows, rank), draw(*lead, rank, columns, seed=1)
    low, full = LowRank(left, right), torch.einsum("...ik,...kj->...ij", left, right)
    assert low.shape == full.shape
    assert torch.allclose(low.full(), full)
    assert low.T.shape == full.mT.shape
    assert torch.allclose(low.T.full(), full.mT)
    assert torch.allclose(low.norm(), full.square().sum(dim=(-2, -1)).sqrt())
    assert torch.allclose(low.T.norm(), low.norm())

    U, values, Vh = low.svd()
    k, expected = min(rows, rank, columns), torch.linalg.svdvals(full)
    assert values.shape == (*lead, k)
    assert torch.allclose(values, expected[..., :k])
    assert (expected[..., k:] < 1e-10).all()
    assert torch.allclose(U * values[..., None, :] @ Vh, full)
    assert torch.allclose(U.mT @ U, torch.eye(k, dtype=torch.float64).expand(*lead, k, k))
    assert torch.allclose(Vh @ Vh.mT, torch.eye(k, dtype=torch.float64).expand(*lead, k, k))

    if rows == columns:
        eigenvalues = low.eigenvalues()
        assert eigenvalues.shape == (*lead, rank)
        for some, matrix in zip(eigenvalues.view(-1, rank), full.view(-1, rows, rows), strict=True):
            assert_same_numbers(some, torch.linalg.eigvals(matrix))
    else:
        with pytest.raises(ValueError, match=f"only a square matrix has eigenvalues, this one is {rows} x {columns}"):
            low.eigenvalues()


def test_low_rank_with_factors_that_do_not_have_full_rank():
    left, right = draw(6, 1).expand(6, 4).clone(), draw(4, 6, seed=1)
    low, full = LowRank(left, right), left @ right
    U, values, Vh = low.svd()
    assert torch.allclose(values, torch.linalg.svdvals(full)[:4], atol=1e-12)
    assert torch.allclose(U * values @ Vh, full)
    assert low.norm().item() == pytest.approx(full.norm().item())
    zero = LowRank(torch.zeros(6, 4), torch.randn(4, 6))
    assert zero.norm() == 0
    assert zero.eigenvalues().abs().max() == 0


def test_low_rank_is_indexed_by_its_leading_axes():
    low = LowRank(draw(2, 3, 6, 4), draw(2, 3, 4, 5, seed=1))
    full = low.left @ low.right
    for index in [1, (1, 2), (slice(None), 0), slice(1, None), torch.tensor([1, 0, 1]), (0, [2, 1])]:
        assert torch.allclose(low[index].full(), full[index])
        assert low[index].shape == full[index].shape
    assert torch.allclose(low[1].T[2].norm(), full[1, 2].norm())


class Largest(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor))])
        return made


def test_low_rank_never_makes_the_full_matrix():
    low = LowRank(draw(500, 4), draw(4, 500, seed=1))
    writers = LowRank(draw(2, 500, 4), draw(2, 4, 500, seed=1))
    for call in (low.norm, low.svd, low.eigenvalues, lambda: ah.composition_scores(writers, writers.T)):
        with Largest() as largest:
            call()
        assert 0 < largest.entries <= writers.left.numel()
    with Largest() as largest:  # the mode sees what it should
        low.full()
    assert largest.entries == 250_000


def test_factors_that_do_not_fit_are_refused():
    """By jaxtyping, which is on in the tests: the two share their leading axes and the rank."""
    for left, right in [((6, 3), (4, 6)), ((2, 6, 3), (3, 6)), ((2, 6, 3), (3, 3, 6))]:
        with pytest.raises(Exception, match=r"(?i)type-check"):
            LowRank(torch.zeros(left), torch.zeros(right))


# The two halves


@kinds
def test_circuits_of_every_head(change):
    model = readable(change)
    qk, ov = ah.qk_circuits(model), ah.ov_circuits(model)
    assert qk.shape == ov.shape == (2, 3, 24, 24)
    for layer, head in HEADS:
        W_Q, W_K, W_V, W_O, *_ = heads_matrices(model, layer, head)
        assert close(qk[layer, head].full(), W_Q @ W_K.T, 1e-5)
        assert close(ov[layer, head].full(), W_V @ W_O, 1e-5)


@kinds
def test_full_circuits_by_hand(change):
    """One pair of streams at a time, in float64, biases included."""
    model = readable(change)
    queries, keys = draw(4, 24, dtype=torch.float32), 3 + 2 * draw(5, 24, seed=1, dtype=torch.float32)
    for layer, head in HEADS:
        W_Q, W_K, W_V, W_O, b_Q, b_K, b_V = heads_matrices(model, layer, head)
        q = [norm_by_hand(model, x.double()) @ W_Q + b_Q for x in queries]
        k = [norm_by_hand(model, x.double()) @ W_K + b_K for x in keys]
        expected = torch.tensor([[(a @ b).item() / math.sqrt(5) for b in k] for a in q])
        assert close(ah.full_qk(model, layer, head, queries, keys).full(), expected, 1e-5)
        W_U = model.unembed.W_U.double()
        expected = torch.stack([(norm_by_hand(model, x.double()) @ W_V + b_V) @ W_O @ W_U for x in keys])
        assert close(ah.full_ov(model, layer, head, keys).full(), expected, 1e-5)


@kinds
def test_full_qk_gives_the_scores_of_a_run(change):
    model, t = readable(change), tokens(batch=1, length=12)
    _, cache = run_with_cache(model, t)
    together = model.embed.W_E[t[0]] + model.pos_embed.W_pos[:12]
    seen = torch.ones(12, 12).tril().bool()
    for layer, head in HEADS:
        scores = cache["attn_scores", layer][0, head]
        streams = cache["resid_pre", layer][0]
        assert layer or torch.allclose(streams, together)
        for x in [streams, together] if layer == 0 else [streams]:
            found = ah.full_qk(model, layer, head, x, x)
            assert found.shape == (12, 12)
            assert close(found.full()[seen], scores[seen])
        some = ah.full_qk(model, layer, head, streams[7:], streams[:3]).full()
        assert close(some, scores[7:, :3])


@kinds
def test_full_ov_is_what_attending_fully_adds_to_the_logits(change):
    """If a head's pattern is made to be all on one source, its result times W_U is that source's row."""
    model, t = readable(change), tokens(batch=1, length=8)
    for (layer, head), source in itertools.product(HEADS, (0, 5)):

        def look(pattern, hook, head=head, source=source):
            pattern[:, head] = 0
            pattern[:, head, :, source] = 1

        with hooked(model, [(f"blocks.{layer}.attn.hook_pattern", look)]):
            _, cache = run_with_cache(model, t, ["blocks.0.attn.hook_result", "blocks.1.attn.hook_result"])
        _, clean = run_with_cache(model, t)
        added = ah.full_ov(model, layer, head, clean["resid_pre", layer][0])
        assert added.shape == (8, 50)
        for query in range(8):
            result = cache["result", layer][0, query, head]
            assert close(result @ model.unembed.W_U, added.full()[source])


def test_what_is_not_folded_is_refused():
    model, t, x = random_model(), tokens(), torch.randn(3, 24)
    _, cache = run_with_cache(model, t)
    for call in (
        lambda: ah.qk_circuits(model),
        lambda: ah.ov_circuits(model),
        lambda: ah.full_qk(model, 0, 0, x, x),
        lambda: ah.full_ov(model, 0, 0, x),
        lambda: ah.attention_terms(model, cache, 0, 0),
        lambda: ah.effect_on_attended(model, t),
        lambda: ah.attended_effects(model, cache, t, 0, 0),
    ):
        with pytest.raises(ValueError, match=r"use fold_layer_norm\(model\) first"):
            call()


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (-1, 0), (0, 3), (1, -1)])
def test_a_head_that_does_not_exist_is_refused(layer, head):
    model, x = readable({}), torch.randn(3, 24)
    t = tokens()
    _, cache = run_with_cache(model, t)
    for call in (
        lambda: ah.full_qk(model, layer, head, x, x),
        lambda: ah.full_ov(model, layer, head, x),
        lambda: ah.attention_terms(model, cache, layer, head),
        lambda: ah.output_by_source(model, cache, layer, head),
        lambda: ah.attended_effects(model, cache, t, layer, head),
    ):
        with pytest.raises(ValueError, match=f"there is no L{layer}H{head}: 2 layers, 3 heads, counted from 0"):
            call()


# Copying


def square(matrix):
    return LowRank(matrix, torch.eye(matrix.shape[-1]).expand_as(matrix))


def test_copying_score_of_known_matrices():
    quarter_turn = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * 3)
    cases = {
        1.0: [torch.eye(6), 0.01 * torch.eye(6), torch.diag(torch.tensor([5.0, 0, 0, 1]))],
        -1.0: [-torch.eye(6)],
        0.0: [quarter_turn, torch.zeros(4, 4), torch.diag(torch.tensor([2.0, -2])), torch.eye(5).roll(1, 0)],
        0.5: [torch.diag(torch.tensor([3.0, -1.0])), math.cos(math.pi / 3) * torch.eye(6) + 0.75**0.5 * quarter_turn],
    }
    for expected, matrices in cases.items():
        for matrix in matrices:
            assert ah.copying_score(square(matrix)).item() == pytest.approx(expected, abs=1e-5)
    together = torch.stack([torch.eye(6), -torch.eye(6), quarter_turn, torch.zeros(6, 6)])
    assert torch.allclose(ah.copying_score(square(together)), torch.tensor([1.0, -1, 0, 0]), atol=1e-5)


def test_copying_score_by_hand():
    low = LowRank(draw(2, 4, 9, 3), draw(2, 4, 3, 9, seed=1))
    scores = ah.copying_score(low)
    for i, j in itertools.product(range(2), range(4)):
        full = low.left[i, j] @ low.right[i, j]
        assert scores[i, j].item() == pytest.approx((full.trace() / torch.linalg.eigvals(full).abs().sum()).item())
    with pytest.raises(ValueError, match="only a square matrix"):
        ah.copying_score(LowRank(torch.randn(4, 2), torch.randn(2, 5)))


def test_the_hand_wired_induction_head_copies_and_no_other():
    model = handmade.induction_model().model
    scores = {(i, h): ah.copying_score(ah.full_ov(model, i, h, model.embed.W_E)) for i, h in HEADS}
    assert scores.pop((1, 0)).item() == pytest.approx(1, abs=1e-6)
    assert all(score == 0 for score in scores.values())


# Composition


@pytest.mark.parametrize(
    ("before", "after"), [((2, 3), (2, 3)), ((4,), (2, 3)), ((2, 3), (4,)), ((1,), (1,)), ((2, 1, 2), (3,))]
)
def test_composition_scores_with_full_matrices(before, after):
    writers = LowRank(draw(*before, 9, 2), draw(*before, 2, 7, seed=1))
    readers = LowRank(draw(*after, 7, 3, seed=2), draw(*after, 3, 8, seed=3))
    writers.left[-1] *= 100  # the size does not matter
    scores = ah.composition_scores(writers, readers)
    assert scores.shape == before + after
    for i, j in itertools.product(itertools.product(*map(range, before)), itertools.product(*map(range, after))):
        A, B = writers.left[i] @ writers.right[i], readers.left[j] @ readers.right[j]
        expected = (A @ B).square().sum().sqrt() / (A.square().sum().sqrt() * B.square().sum().sqrt())
        assert scores[i + j].item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("before", "after"), [((), (3,)), ((2, 3), ()), ((), ())])
def test_composition_scores_of_a_single_head(before, after):
    """No leading axes at all: `ov[4, 11]` with all keys, or two single heads."""
    writers = LowRank(draw(*before, 9, 2), draw(*before, 2, 7, seed=1))
    readers = LowRank(draw(*after, 7, 3, seed=2), draw(*after, 3, 8, seed=3))
    scores = ah.composition_scores(writers, readers)
    assert scores.shape == before + after
    A, B = writers.left @ writers.right, readers.left @ readers.right
    A, B = A.view(-1, 9, 7), B.view(-1, 7, 8)
    expected = torch.stack([torch.stack([(a @ b).norm() / (a.norm() * b.norm()) for b in B]) for a in A])
    assert torch.allclose(scores.flatten(), expected.flatten())


def test_composition_closed_forms():
    """A writer of one direction and a reader of one: the score is the cosine between the two."""
    for angle in (0.0, 0.3, math.pi / 3, math.pi / 2, math.pi):
        writes = torch.tensor([[math.cos(angle), math.sin(angle), 0, 0]], dtype=torch.float64)
        reads = torch.tensor([[1.0], [0], [0], [0]], dtype=torch.float64)
        writer, reader = LowRank(draw(1, 4, 1), writes[None]), LowRank(reads[None], draw(1, 1, 4, seed=1))
        assert ah.composition_scores(writer, reader).item() == pytest.approx(abs(math.cos(angle)), abs=1e-12)
    eye = torch.eye(9)[None]  # a reader of everything equally, rank 9: the score is 1 / sqrt(9) for any writer
    assert ah.composition_scores(LowRank(torch.randn(1, 9, 2), torch.randn(1, 2, 9)), LowRank(eye, eye)).item() == (
        pytest.approx(1 / 3)
    )
    zero, some = (
        LowRank(torch.zeros(2, 6, 3), torch.zeros(2, 3, 6)),
        LowRank(torch.randn(1, 6, 3), torch.randn(1, 3, 6)),
    )
    for writers, readers in ((zero, some), (some, zero), (zero, zero)):
        assert (ah.composition_scores(writers, readers) == 0).all()


def test_a_rotation_keeps_all_but_the_aim():
    writers = LowRank(draw(2, 3, 12, 4, dtype=torch.float32), draw(2, 3, 4, 12, seed=1, dtype=torch.float32))
    turned = ah.rotated(writers, generator())
    assert torch.equal(turned.left, writers.left)
    assert torch.allclose(turned.norm(), writers.norm(), rtol=1e-5)
    full, other = (torch.linalg.svdvals(x.left @ x.right) for x in (writers, turned))
    assert torch.allclose(full, other, atol=1e-4)
    assert not torch.allclose(turned.right, writers.right, atol=0.5)
    alike = ah.rotated(LowRank(writers.left, writers.right[:1, :1].expand(2, 3, -1, -1)), generator())
    for one, other in itertools.combinations(alike.right.flatten(0, 1), 2):  # each is turned by its own
        assert not torch.allclose(one, other, atol=0.5)
    assert torch.equal(ah.rotated(writers, generator()).right, turned.right)
    assert not torch.equal(ah.rotated(writers, generator(1)).right, turned.right)


def test_the_baseline_is_one_over_the_root_of_d_model():
    """The mean square over all rotations is exactly 1 / d_model, for a writer and a reader of any singular values."""
    n, d = 4000, 12
    writer = LowRank(draw(d, 3, dtype=torch.float32), torch.diag(torch.tensor([9.0, 1.0, 0.1])) @ torch.eye(3, d))
    reader = LowRank(torch.eye(d, 2), torch.tensor([[1.0], [0.2]]) * draw(2, d, seed=1, dtype=torch.float32))
    writers = LowRank(writer.left.expand(n, -1, -1), writer.right.expand(n, -1, -1))
    turned = ah.rotated(writers, generator())
    readers = LowRank(reader.left[None], reader.right[None])
    assert ah.composition_scores(writers[:1], readers).item() > 0.9  # it was aimed
    squares = ah.composition_scores(turned, readers).square()
    assert squares.std() > 0.05
    assert squares.mean().item() == pytest.approx(1 / d, abs=5 * squares.std().item() / n**0.5)
    directions = turned.right / turned.right.norm(dim=-1, keepdim=True)  # uniform: no direction is preferred
    assert directions.mean(dim=0).abs().max() < 5 / (d * n) ** 0.5
    assert directions.square().mean(dim=0) == pytest.approx(torch.full((3, d), 1 / d), abs=5 * (2 / (d * d * n)) ** 0.5)


def sides(model):
    """Composition of each two heads, by the side of the receiver."""
    ov, qk = ah.ov_circuits(model), ah.qk_circuits(model)
    readers = {"q": qk, "k": qk.T, "v": ov}
    return {side: ah.composition_scores(ov, reader) for side, reader in readers.items()}


@pytest.mark.parametrize(
    "make", [handmade.induction_model, handmade.shifted_induction_model, handmade.ioi_model], ids=lambda f: f.__name__
)
def test_composition_finds_the_wires_and_nothing_else(make):
    wired = make()
    tables, cfg = sides(wired.model), wired.model.cfg
    found = {
        (f"L{i}H{h}", f"L{j}H{k}", side)
        for side, table in tables.items()
        for i, h, j, k in itertools.product(range(cfg.n_layers), range(cfg.n_heads), repeat=2)
        if i < j and f"L{j}H{k}" in wired.nodes and table[i, h, j, k] > 1e-6
    }
    edges = {(e.sender, e.receiver, e.input) for e in wired.edges if "H" in e.sender and "H" in e.receiver}
    assert found == edges
    assert edges


def test_composition_of_the_hand_wired_heads_in_closed_form():
    """The writer passes on 13 words alike, the reader reads the 12 letters alike: sqrt(12) / (sqrt(13) sqrt(12))."""
    tables = sides(handmade.induction_model().model)
    expected = torch.zeros(3, 3)
    expected[1, [0, 1]] = 13**-0.5  # the idle L1H1 reads the same
    assert torch.allclose(tables["k"][0, :, 1], expected, atol=1e-6)
    assert tables["q"][0, :, 1].abs().max() == 0
    assert tables["v"][0, :, 1].abs().max() == 0
    tables = sides(handmade.shifted_induction_model().model)
    assert tables["k"][0, :, 1, 0].tolist() == pytest.approx([0, 13**-0.5, 0], abs=1e-6)
    assert tables["v"][0, :, 1, 0].tolist() == pytest.approx([13**-0.5, 0, 0], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_in_the_control_nothing_stands_out(seed):
    wired = handmade.induction_model()
    d_model = wired.model.cfg.d_model
    for table in sides(handmade.circuit_free(wired, seed)).values():
        ratio = table[0, :, 1] * d_model**0.5
        assert ratio.min() > 0.8
        assert ratio.max() < 1.25
    assert sides(wired.model)["k"][0, 1, 1, 0] * d_model**0.5 > 2


# One head on one input


@pytest.mark.parametrize("change", [*KINDS, {"normalization_type": "LN"}], ids=str)
def test_the_stream_is_the_sum_of_its_parts(change):
    model = random_model(Config(**{**vars(SHAPE), **change, "n_layers": 3}))
    t = tokens()
    _, everything = run_with_cache(model, t, lambda name: True)
    _, usual = run_with_cache(model, t)
    _, mixed = run_with_cache(model, t, lambda name: name in model.hook_names or name == "blocks.1.attn.hook_result")
    mlp = (lambda i: []) if model.cfg.attn_only else (lambda i: [f"MLP{i}"])
    heads = lambda i: [f"L{i}H0", f"L{i}H1", f"L{i}H2", f"b_O {i}"]  # noqa: E731
    for layer in range(4):
        stream = everything["resid_pre", layer] if layer < 3 else everything["resid_post", 2]
        for cache, attention in (
            (everything, heads),
            (usual, lambda i: [f"attn {i}"]),
            (mixed, lambda i: heads(i) if i == 1 else [f"attn {i}"]),
        ):
            names, parts = ah.stream_parts(model, cache, layer)
            expected = ["embed", "pos_embed", *(name for i in range(layer) for name in attention(i) + mlp(i))]
            assert list(names) == expected
            assert parts.shape == (len(names), 3, 9, 24)
            assert close(parts.sum(dim=0), stream, 1e-5)
    names, parts = ah.stream_parts(model, everything, 3)
    part = dict(zip(names, parts, strict=True))
    assert torch.equal(part["L1H2"], everything["result", 1][:, :, 2])
    assert torch.equal(part["embed"], model.embed.W_E[t])
    assert torch.equal(part["pos_embed"], model.pos_embed.W_pos[:9].expand(3, -1, -1))
    assert torch.equal(part["b_O 2"][1, 4], model.blocks[2].attn.b_O)
    if not model.cfg.attn_only:
        assert torch.equal(part["MLP2"], everything["mlp_out", 2])


@pytest.mark.parametrize("costly", [False, True])
@kinds
def test_terms_add_up_to_the_scores(change, costly):
    model = readable(change)
    _, cache = run_with_cache(model, tokens(), (lambda name: True) if costly else None)
    seen = torch.ones(9, 9).tril().bool()
    for layer, head in HEADS:
        terms = ah.attention_terms(model, cache, layer, head)
        names, _ = ah.stream_parts(model, cache, layer)
        assert terms.parts == (*names, "bias")
        n = len(terms.parts)
        assert terms.values.shape == (n, n, 3, 9, 9)
        scores = cache["attn_scores", layer][:, head]
        assert close(terms.values.sum(dim=(0, 1))[:, seen], scores[:, seen])


@kinds
def test_each_term_by_hand(change):
    """Part times part, in float64, with the mean and the scale of the whole stream."""
    model = readable(change)
    _, cache = run_with_cache(model, tokens(), lambda name: True)
    layer, head, row, query, key = 1, 2, 1, 6, 3
    W_Q, W_K, _, _, b_Q, b_K, _ = heads_matrices(model, layer, head)
    _, parts = ah.stream_parts(model, cache, layer)

    def seen(position):
        stream = cache["resid_pre", layer][row, position].double()
        x = parts[:, row, position].double()
        if model.cfg.normalization_type is None:
            return x
        scale = torch.sqrt(stream.var(correction=0) + model.cfg.eps)
        return (x - x.mean(dim=1, keepdim=True)) / scale

    q, k = [*(seen(query) @ W_Q), b_Q], [*(seen(key) @ W_K), b_K]
    expected = torch.stack([torch.stack([a @ b for b in k]) for a in q]) / math.sqrt(5)
    found = ah.attention_terms(model, cache, layer, head).values[:, :, row, query, key]
    assert close(found, expected)


def test_terms_of_the_hand_wired_induction_head():
    """All that distinguishes its target is one term: the current letter with what the previous-token head wrote."""
    model = handmade.induction_model().model
    t = model.tokenizer.encode("a b c d a")
    _, cache = run_with_cache(model, t, lambda name: True)
    terms = ah.attention_terms(model, cache, 1, 0)
    assert terms.parts == ("embed", "pos_embed", "L0H0", "L0H1", "L0H2", "b_O 0", "bias")
    table = terms.values[:, :, 0, 5]
    (query, key, value), *rest = terms.largest(5, 2)
    assert (query, key) == ("embed", "L0H1")
    assert value == pytest.approx(2 * handmade.SHARP, rel=1e-5)
    assert all(abs(term) < 1e-9 for *_, term in rest)
    assert table[:, :, [1, 3, 4, 5]].abs().max() < 1e-9
    assert terms.largest(5, 0, n=1)[0][:2] == ("bias", "embed")  # where it rests


def test_terms_on_the_course_model():
    model = fold_layer_norm(load("tinyworld"))
    text = "When Mary and John went to the store , John gave a book to"
    _, cache = run_with_cache(model, tinyworld.TOKENIZER.encode(text), lambda name: True)
    n = cache["resid_pre", 0].shape[1]
    seen = torch.ones(n, n).tril().bool()
    for layer, head in itertools.product(range(4), range(6)):
        terms = ah.attention_terms(model, cache, layer, head)
        assert close(terms.values.sum(dim=(0, 1))[:, seen], cache["attn_scores", layer][:, head][:, seen], 1e-3)


def test_the_largest_terms():
    values = torch.zeros(3, 3, 2, 4, 4)
    values[0, 2, 1, 3, 2], values[2, 0, 1, 3, 2], values[1, 1, 1, 3, 2], values[0, 0, 1, 3, 2] = 1.0, -5.0, 3.0, -0.5
    values[0, 0, 0, 3, 2] = 7.0  # in another row
    values[0, 0, 1, 2, 3] = 9.0  # with query and key exchanged
    terms = ah.Terms(("a", "b", "c"), values)
    assert terms.largest(3, 2, batch=1, n=3) == [("c", "a", -5.0), ("b", "b", 3.0), ("a", "c", 1.0)]
    assert terms.largest(3, 2, n=1) == [("a", "a", 7.0)]
    assert len(terms.largest(3, 2)) == 5
    assert len(terms.largest(3, 2, n=100)) == 9


@pytest.mark.parametrize("change", [{}, {"normalization_type": None}], ids=str)
def test_what_a_head_writes_is_a_sum_over_sources(change):
    model = random_model(Config(**{**vars(SHAPE), **change}))  # no need to fold
    _, cache = run_with_cache(model, tokens(), lambda name: True)
    for layer, head in HEADS:
        by_source = ah.output_by_source(model, cache, layer, head)
        assert by_source.shape == (3, 9, 9, 24)
        assert close(by_source.sum(dim=2), cache["result", layer][:, :, head])
        *_, W_O = heads_matrices(model, layer, head)[:4]
        for row, query, key in ((0, 8, 3), (2, 5, 5), (1, 2, 7)):
            weight = cache["pattern", layer][row, head, query, key].double()
            value = cache["v", layer][row, key, head].double()
            assert torch.allclose(by_source[row, query, key].double(), weight * (value @ W_O), atol=1e-5)
        assert by_source[:, 2, 3:].abs().max() == 0


def effects_by_hand(model, t, more_than):
    """One query at a time: what the logit of the word attended to gains over the average word, for each head."""
    _, cache = run_with_cache(model, t, lambda name: True)
    W_U, effects = model.unembed.W_U.double(), {}
    for layer, head in HEADS:
        effects[layer, head] = []
        for row, query in itertools.product(range(t.shape[0]), range(t.shape[1])):
            weights = {key: cache["pattern", layer][row, head, query, key].item() for key in range(1, query)}
            key = max(weights, key=weights.get, default=None)
            if key is None or weights[key] <= more_than:
                continue
            written = cache["result", layer][row, query, head].double()
            if model.cfg.normalization_type is not None:
                stream = cache["resid_post", model.cfg.n_layers - 1][row, query].double()
                written = (written - written.mean()) / torch.sqrt(stream.var(correction=0) + model.cfg.eps)
            logits = written @ W_U
            effects[layer, head].append((logits[t[row, key]] - logits.mean()).item())
    return effects


@kinds
def test_effects_on_attended_by_hand(change):
    model, t = readable(change), tokens(batch=4, length=12)
    _, cache = run_with_cache(model, t)
    for more_than in (0.3, 0.6, 0.9):
        means = ah.effect_on_attended(model, t, more_than)
        assert means.shape == (2, 3)
        for at, expected in effects_by_hand(model, t, more_than).items():
            found = ah.attended_effects(model, cache, t, *at, more_than)
            assert found.tolist() == pytest.approx(expected, abs=1e-3, rel=1e-4)
            mean = sum(expected) / len(expected) if expected else math.nan
            assert means[at].item() == pytest.approx(mean, abs=1e-3, rel=1e-4, nan_ok=True)
            assert more_than > 0.3 or len(expected) > 3
            assert more_than > 0.3 or torch.equal(ah.attended_effects(model, cache, t, *at), found)  # the default
    assert torch.equal(ah.effect_on_attended(model, t), ah.effect_on_attended(model, t, 0.3))
    assert ah.effect_on_attended(model, t, 1.0).isnan().all()
    assert ah.effect_on_attended(model, t[:, :2]).isnan().all()  # no earlier word


def test_effect_on_attended_where_there_is_only_the_first_token():
    model = readable({})
    assert ah.effect_on_attended(model, tokens(length=1)).isnan().all()


def test_effect_on_attended_in_closed_form():
    """The hand-wired induction head raises one logit of 13 by its gain; heads of layer 0 raise none."""
    model = handmade.induction_model(gain=8.0).model
    t = model.tokenizer.encode(["a b c d a b c d", "d c k a d c k a"])
    effects = ah.effect_on_attended(model, t)
    _, cache = run_with_cache(model, t)
    assert ah.attended_effects(model, cache, t, 1, 0).tolist() == pytest.approx([8 * 12 / 13] * 8, abs=1e-5)
    assert effects[1, 0].item() == pytest.approx(8 * 12 / 13, abs=1e-5)
    assert effects[0, 1:].abs().max() == 0
    assert effects[1, 1] == 0
    assert effects[[0, 1], [0, 2]].nan_to_num().abs().max() == 0  # unwired: they attend evenly


# TransformerLens


def test_peer_factored_matrices():
    lens = pytest.importorskip("transformer_lens", reason="TransformerLens is not installed")
    for lead, rows, rank, columns in SIZES:
        left, right = draw(*lead, rows, rank), draw(*lead, rank, columns, seed=1)
        ours, theirs = LowRank(left, right), lens.FactoredMatrix(left, right)
        assert ours.shape == tuple(theirs.shape)
        assert torch.allclose(ours.norm(), theirs.norm())
        assert torch.allclose(ours.T.full(), theirs.T.AB)
        U, values, Vh = ours.svd()
        n = values.shape[-1]
        assert torch.allclose(values, theirs.S[..., :n])
        assert torch.allclose(U * values[..., None, :] @ Vh, theirs.U * theirs.S[..., None, :] @ theirs.V.mT)
        if rows == columns:
            for some, others in zip(
                ours.eigenvalues().view(-1, rank), theirs.eigenvalues.reshape(-1, rank), strict=True
            ):
                assert_same_numbers(some, others)


@pytest.mark.parametrize("change", [{}, {"normalization_type": None, **ATTENTION_ONLY}], ids=str)
def test_peer_circuits_and_composition(change):
    lens = pytest.importorskip("transformer_lens", reason="TransformerLens is not installed")
    model = readable(change)
    cfg = model.cfg
    settings = {name: value for name, value in vars(cfg).items() if not (cfg.attn_only and name in ("d_mlp", "act_fn"))}
    theirs = lens.HookedTransformer(lens.HookedTransformerConfig(**settings, device="cpu"))
    theirs.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for ours, other in ((ah.qk_circuits(model), theirs.QK), (ah.ov_circuits(model), theirs.OV)):
            assert torch.allclose(ours.full(), other.AB, atol=1e-5)
            assert torch.allclose(ours.norm(), other.norm(), rtol=1e-4)
        for side, table in sides(model).items():
            expected = theirs.all_composition_scores(side.upper())
            assert torch.allclose(table[0, :, 1], expected[0, :, 1], atol=1e-4)
        t = tokens(batch=1)
        _, cache = theirs.run_with_cache(t)
        for layer, head in HEADS:
            x = cache["resid_pre", layer][0]
            scores = cache["attn_scores", layer][0, head]
            seen = torch.ones(9, 9).tril().bool()
            assert close(ah.full_qk(model, layer, head, x, x).full()[seen], scores[seen])
