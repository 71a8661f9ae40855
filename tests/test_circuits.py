"""Circuits and what is asked of them, on functions so small that every answer is known; and their picture."""

import itertools
import json
import random
from collections import Counter

import matplotlib as mpl
import pytest
import torch

from interp_edu import plot
from interp_edu.circuits import (
    Agreement,
    Circuit,
    agreement,
    coarsen,
    completeness,
    describe,
    elimination,
    faithfulness,
    from_network,
    layout,
    minimality,
    prune,
)
from interp_edu.tiny_networks import Network

mpl.use("Agg")

INDUCTION = Circuit(
    {"L0H1": "previous-token head", "L1H0": "induction head"},
    {("embed", "L0H1", "v"): 0.5, ("L0H1", "L1H0", "k"): 2.0, ("L0H1", "L1H0", "v"): 1, ("L1H0", "logits", ""): -0.25},
)

# Nodes and edges ---------------------------------------------------------------------------------


def test_nodes_and_who_reads_them():
    assert INDUCTION.names == {"L0H1", "L1H0"}
    assert INDUCTION.receivers("L0H1") == ["L1H0"]
    assert INDUCTION.receivers("L1H0") == ["logits"]
    assert INDUCTION.receivers("embed") == ["L0H1"]
    assert INDUCTION.receivers("L7H7") == []
    fan = Circuit(dict.fromkeys("acb", ""), {("a", "b", "q"): 1.0, ("a", "c", "k"): 1.0, ("a", "b", "v"): 1.0})
    assert fan.receivers("a") == ["b", "c"]  # in the order of the edges
    assert Circuit({"a": ""}).edges == Circuit({}, {("embed", "logits", ""): 1.0}).nodes == {}


@pytest.mark.parametrize(
    ("edge", "words"),
    [
        (("L0H1", "L2H2", "q"), "L2H2 is not a node"),
        (("L2H2", "logits", ""), "L2H2 is not a node"),
        (("L1H0", "L0H1", "k"), "L1H0 to L0H1 k goes backwards"),
        (("L0H1", "L0H1", "k"), "goes backwards"),
        (("logits", "L0H1", ""), "goes backwards"),
        (("L0H1", "embed", ""), "goes backwards"),
    ],
)
def test_edges_that_cannot_be(edge, words):
    with pytest.raises(ValueError, match=words):
        Circuit(INDUCTION.nodes, {edge: 1.0})


def test_a_file_holds_it_all(tmp_path):
    path = tmp_path / "circuit.json"
    odd = Circuit({"b é": "'\"\n", "a": ""}, {("b é", "a", "mlp"): 1 / 3, ("a", "logits", ""): -1e-30})
    for circuit in (INDUCTION, odd, Circuit({})):
        circuit.save(path)
        again = Circuit.load(str(path))
        assert again == circuit
        assert list(again.nodes) == list(circuit.nodes)  # the order means something
        assert list(again.edges) == list(circuit.edges)
    INDUCTION.save(path)
    written = json.loads(path.read_text("utf-8"))
    assert written["nodes"] == INDUCTION.nodes
    assert written["edges"][1] == ["L0H1", "L1H0", "k", 2.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"nodes": {"a": ""}, "edges": [["a", "log',
        "[]",
        "3",
        "null",
        '{"nodes": {"a": ""}}',
        '{"edges": []}',
        '{"nodes": ["a"], "edges": []}',
        '{"nodes": {"a": ""}, "edges": [["a", "logits", ""]]}',
        '{"nodes": {"a": ""}, "edges": [["a", "logits", "", "much"]]}',
        '{"nodes": {"a": ""}, "edges": [["a", "logits", "", null]]}',
        '{"nodes": {"a": ""}, "edges": [["a", "b", "", 1]]}',
        '{"nodes": {"a": ""}, "edges": [3]}',
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "damaged.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"damaged\.json does not hold a circuit"):
        Circuit.load(path)
    path.write_bytes(b"\xff\xfe\x00" + text.encode())
    with pytest.raises(ValueError, match=r"damaged\.json does not hold a circuit"):
        Circuit.load(path)


# How two agree -----------------------------------------------------------------------------------


def test_agreement_by_hand():
    true = Circuit(dict.fromkeys("abcd", "?"), {("a", "b", "q"): 1.0, ("a", "b", "k"): 1.0, ("d", "logits", ""): 1.0})
    found = Circuit(dict.fromkeys("ade", ""), {("a", "d", "q"): 1.0, ("d", "logits", ""): -5.0})
    both = agreement(found, true)
    assert both == {"nodes": Agreement(2 / 3, 2 / 4), "edges": Agreement(1 / 2, 1 / 3)}
    assert agreement(true, found)["nodes"] == Agreement(2 / 4, 2 / 3)
    perfect = Agreement(1.0, 1.0)
    assert agreement(true, Circuit(dict.fromkeys("dcba", ""), {})) == {"nodes": perfect, "edges": Agreement(0.0, 1.0)}
    assert agreement(Circuit({}), true) == {"nodes": Agreement(1.0, 0.0), "edges": Agreement(1.0, 0.0)}
    assert agreement(Circuit({}), Circuit({})) == {"nodes": perfect, "edges": perfect}
    assert Agreement.of(iter("aab"), iter("ac")) == Agreement(1 / 2, 1 / 2)  # sets; any iterables


# What a circuit has to pass ----------------------------------------------------------------------


def and_gate(kept):
    return 4.0 if {"a", "b"} <= kept else 1.0


def backup(kept):
    """a does it; b would do most of it if a were gone; c does a little beside."""
    return (3.0 if "a" in kept else 2.5 if "b" in kept else 0.0) + ("c" in kept)


def test_a_gate_that_needs_both():
    network = "abc"
    assert faithfulness(and_gate, "ab", network) == 1
    assert faithfulness(and_gate, "a", network) == 0.25
    assert completeness(and_gate, "ab", network, [(), "a", "c", "abc"]) == [(4, 4), (1, 1), (4, 4), (1, 1)]
    assert minimality(and_gate, "cab") == {"a": 3, "b": 3, "c": 0}
    # Where one of the two is gone already, the other changes nothing: the largest change counts.
    assert minimality(and_gate, network, ["b", ""])["a"] == 3
    assert minimality(and_gate, network, ["b"])["a"] == 0


def test_completeness_shows_the_backup_that_faithfulness_does_not():
    naive, network = ["a", "c"], ["a", "b", "c"]
    assert faithfulness(backup, naive, network) == 1
    sets = [(), ("a",), ("c",), ("a", "b")]
    assert completeness(backup, naive, network, sets) == [(4, 4), (1, 3.5), (3, 3), (1, 1)]
    assert all(ours == theirs for ours, theirs in completeness(backup, network, network, sets))


def test_minimality_needs_company_to_see_that_either_of_two_matters():
    def either(kept):
        return float(bool({"a", "b"} & kept))

    assert minimality(either, "abc") == {"a": 0, "b": 0, "c": 0}
    company = [(), ("a",), ("b",)]
    assert minimality(either, "abc", company) == {"a": 1, "b": 1, "c": 0}
    assert minimality(either, "abc", [("a", "b")]) == {"a": 1, "b": 1, "c": 0}  # a node is no company for itself
    assert minimality(lambda kept: -either(kept), "ab", iter(company)) == {"a": 1, "b": 1}  # by how much, not where to
    assert minimality(either, "") == {}
    assert minimality(backup, "abc") == {"a": 0.5, "b": 0, "c": 1}
    assert minimality(backup, "abc", [(), "a"]) == {"a": 0.5, "b": 2.5, "c": 1}


@pytest.mark.parametrize("seed", range(5))
def test_any_function_against_the_definitions(seed):
    """Scores drawn for all sets of five nodes."""
    rng, nodes = random.Random(seed), "abcde"
    sets = [frozenset(s) for size in range(6) for s in itertools.combinations(nodes, size)]
    table = {s: rng.uniform(1, 2) for s in sets}
    circuit = frozenset(rng.sample(nodes, 3))
    assert faithfulness(table.get, circuit, nodes) == table[circuit] / table[frozenset(nodes)]
    pairs = completeness(table.get, circuit, nodes, sets)
    assert pairs == [(table[circuit - k], table[frozenset(nodes) - k]) for k in sets]
    assert completeness(table.get, nodes, iter(nodes), sets[3:4]) == [(table[frozenset(nodes) - sets[3]],) * 2]
    found = minimality(table.get, sorted(circuit), sets)
    assert list(found) == sorted(circuit)
    for node, change in found.items():
        with_it = [k for k in sets if node not in k]
        assert change == max(abs(table[circuit - k - {node}] - table[circuit - k]) for k in with_it)


def test_what_is_knocked_out_may_be_any_iterable():
    sets = (iter(k) for k in [("a",), ("c",)])
    assert completeness(backup, "ac", "abc", sets) == [(1, 3.5), (3, 3)]


def test_a_network_that_does_nothing_has_no_share():
    with pytest.raises(ZeroDivisionError):
        faithfulness(lambda kept: 0.0, "a", "ab")
    assert faithfulness(lambda kept: 1.0 - 2 * len(kept), "a", "ab") == pytest.approx(1 / 3)  # both negative


# Its picture -------------------------------------------------------------------------------------

PLACES = {"L0H1": (0.0, 0.0), "L1H0": (1.0, 1.0), "logits": (0.5, 2.5)}


def drawn(edges, places=PLACES, **labels):
    """Names at their places, letters on edges, and arrows as (colour, style, width, from, to)."""
    fig, ax = plot.subplots()
    try:
        assert plot.circuit(ax, places, edges, **labels) is ax
        fig.canvas.draw()
        texts = [text for text in ax.texts if text.get_text()]
        arrows = [text for text in ax.texts if not text.get_text()]
        patches = [a.arrow_patch for a in arrows]
        looks = [(p.get_edgecolor(), p.get_linestyle(), p.get_linewidth()) for p in patches]
        ends = [(a.xyann, a.xy) for a in arrows]
        return ax, {t.get_text(): t.get_position() for t in texts}, Counter(t.get_text() for t in texts), looks, ends
    finally:
        plot.plt.close(fig)


def test_the_picture_has_every_node_and_edge():
    edges = {("L0H1", "L1H0", "k"): 2.0, ("L0H1", "L1H0", "mlp"): 1.0, ("L1H0", "logits", ""): -4.0}
    ax, at, count, looks, ends = drawn(edges, L1H0="induction\nhead")
    assert count == {"L0H1": 1, "induction\nhead": 1, "logits": 1, "k 2.0": 1, "mlp 1.0": 1, "4.0": 1}
    assert at["induction\nhead"] == (1, 1)
    assert at["4.0"] == pytest.approx((0.75, 1.75))  # in the middle
    both = at["k 2.0"], at["mlp 1.0"]  # two bows, one on either side
    assert [sum(x) / 2 for x in zip(*both, strict=True)] == pytest.approx([0.5, 0.5])
    assert abs(both[0][0] - both[1][0]) > 0.1
    assert ends == [((0, 0), (1, 1)), ((0, 0), (1, 1)), ((1, 1), (0.5, 2.5))]
    (plus, solid, two), (same, _, one), (minus, dashed, four) = looks
    assert plus == same != minus
    assert (solid, dashed) == ("-", "--")
    assert one < two < four
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert all(left < x < right and bottom < y < top for x, y in PLACES.values())
    assert drawn({})[2] == {"L0H1": 1, "L1H0": 1, "logits": 1}  # nodes alone


def test_weights_are_written_on_up_to_fifteen_edges():
    for n in (15, 16):
        places = {"a": (0.0, 0.0)} | {f"b{i}": (2.0, float(i)) for i in range(n)}
        count = drawn({("a", f"b{i}", "k"): 1.0 for i in range(n)}, places)[2]
        assert count["k 1.0"] == (15 if n == 15 else 0)


def test_no_weight_is_written_where_two_edges_cross():
    places = {"a": (0.0, 0.0), "b": (0.0, 1.0), "c": (2.2, 0.0), "d": (2.2, 1.0)}
    at = drawn({("a", "d", ""): 1.0, ("b", "c", ""): 2.0}, places)[1]
    for weight, start, end in (("1.0", (0, 0), (2.2, 1)), ("2.0", (0, 1), (2.2, 0))):
        along = at[weight][0] / 2.2
        assert at[weight][1] == pytest.approx(start[1] + along * (end[1] - start[1]))  # on its own edge
        assert abs(along - 0.5) > 0.1


@pytest.mark.parametrize("crop", [None, "tight"])
def test_arrows_end_at_the_boxes_also_when_the_figure_is_cropped(crop, tmp_path, monkeypatch):
    """In pixels of the last drawing: a tip is outside its box, and by less than the 2 + 2 points it keeps away."""
    fig, ax = plot.subplots()
    plot.circuit(ax, {"a": (0.0, 0.0), "b": (1.0, 0.0)}, {("a", "b", ""): 1.0})
    ax.set_title("a title, for which the axes make room")
    seen = []
    patch = next(t for t in ax.texts if not t.get_text()).arrow_patch
    draw = type(patch).draw

    def watched(self, renderer):
        draw(self, renderer)
        line = self._get_path_in_displaycoord()[0][0]  # the shaft; its ends are clipped at the boxes
        seen.append((line.vertices[0, 0], line.vertices[-1, 0]))

    monkeypatch.setattr(type(patch), "draw", watched)
    fig.savefig(tmp_path / "a.png", bbox_inches=crop)
    boxes = {t.get_text(): t.get_bbox_patch().get_window_extent() for t in ax.texts if t.get_text() in ("a", "b")}
    start, end = seen[-1]
    point = fig.dpi / 72
    plot.plt.close(fig)
    if crop is None:
        assert 0 <= start - boxes["a"].x1 < 6 * point
        assert 0 <= boxes["b"].x0 - end < 10 * point
    before = seen[0]
    assert end - start == pytest.approx(
        before[1] - before[0], abs=0.5
    )  # cropping moves arrows, and does not change them


def test_the_picture_of_what_has_no_place():
    for edge in (("L0H1", "L3H3", "k"), ("embed", "L1H0", "")):
        with pytest.raises((KeyError, ValueError), match=r"L3H3|embed"):
            drawn({edge: 1.0})


def test_the_picture_of_edges_without_weight():
    _, _, _, looks, _ = drawn({("L0H1", "L1H0", "k"): 0.0})
    assert len(looks) == 1


# From a network to a circuit ---------------------------------------------------------------------------


def two_paths() -> Network:
    """x0 -> L1N0 -> y0 and x1 -> L1N1 -> y1; L1N2 reads x0 and leads nowhere, L1N3 leads to y0 and reads nothing."""
    W_in = torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0]])
    W_out = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    return Network([W_in, W_out], [torch.tensor([0.0, 2.0, 0.0, 5.0]), torch.zeros(2)])


def test_from_network_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 1.0], [0.0, 0.0], [2.0, 1.0]])  # standard deviations 1 and 1/2
    circuit = from_network(two_paths(), x, threshold=0.1)
    assert list(circuit.nodes) == ["x0", "x1", "L1N0", "L1N1", "y0", "y1"]
    assert circuit.edges == pytest.approx(
        {("x0", "L1N0", ""): 2.0, ("x1", "L1N1", ""): -0.5, ("L1N0", "y0", ""): 6.0, ("L1N1", "y1", ""): 0.5}
    )
    assert list(from_network(two_paths(), x, threshold=0.1, outputs=["y1"]).nodes) == ["x1", "L1N1", "y1"]
    assert list(from_network(two_paths(), x, threshold=0.1, kept=["L1N0"]).nodes) == ["x0", "L1N0", "y0"]
    assert from_network(two_paths(), x, threshold=1.0).edges.keys() == {("x0", "L1N0", ""), ("L1N0", "y0", "")}
    assert from_network(two_paths(), torch.ones(3, 2), threshold=0.1).edges == {}  # nothing varies


def test_from_network_refuses_unknown_names():
    with pytest.raises(ValueError, match="no 'L7N0'"):
        from_network(two_paths(), torch.ones(3, 2), threshold=0.1, kept=["L7N0"])
    with pytest.raises(ValueError, match="no 'y9'"):
        from_network(two_paths(), torch.ones(3, 2), threshold=0.1, outputs=["y9"])


def test_coarsen_merges_neurons_heads_and_ends():
    fine = Circuit(
        {"x0": "", "x1": "", "L1N0": "edge", "L1N12": "curve", "mlp3": "", "L4H1": "edge", "L4H2": "edge", "y0": ""},
        {
            ("x0", "L1N0", ""): 1.0,
            ("x1", "L1N0", ""): -2.0,
            ("x1", "L1N12", ""): 0.5,
            ("L1N0", "L1N12", ""): 9.0,  # within a layer: dropped
            ("L1N12", "mlp3", ""): 1.0,
            ("L4H1", "y0", "q"): 1.0,
            ("L4H2", "y0", "k"): -1.0,
        },
    )
    coarse = coarsen(fine)
    assert coarse.nodes == {"x": "", "L1": "edge, curve", "mlp3": "", "L4": "edge", "y": ""}
    assert coarse.edges == {("x", "L1", ""): 3.5, ("L1", "mlp3", ""): 1.0, ("L4", "y", "q"): 1.0, ("L4", "y", "k"): 1.0}
    assert coarsen(coarse) == coarse


def test_layout_has_a_layer_for_each_step_and_no_two_nodes_in_one_place():
    rng = random.Random(0)
    layers = [[f"{name}{i}" for i in range(10)] for name in ("x", "L1N", "L2N")]
    edges = {(rng.choice(a), b, ""): 1.0 for a, b_s in itertools.pairwise(layers) for b in b_s for _ in range(3)}
    circuit = Circuit({name: "" for layer in layers for name in layer}, edges)
    places = layout(circuit)
    assert set(places) == set(circuit.nodes)
    assert len(set(places.values())) == 30
    assert all(places[a][0] < places[b][0] for a, b, _ in edges)
    closest = min(abs(p[1] - q[1]) for p, q in itertools.combinations(places.values(), 2) if p[0] == q[0])
    assert closest >= 0.99  # room for a name


def test_layout_uncrosses_what_can_be_uncrossed():
    nodes = {name: "" for name in ("x0", "x1", "x2", "L1N0", "L1N1", "L1N2")}
    places = layout(Circuit(nodes, {("x0", "L1N2", ""): 1.0, ("x1", "L1N1", ""): 1.0, ("x2", "L1N0", ""): 1.0}))
    assert places["L1N2"][1] > places["L1N1"][1] > places["L1N0"][1]  # as x0, x1, x2 from above


def test_layout_with_ends_and_without_edges():
    with_ends = Circuit({"L0H1": ""}, {("embed", "L0H1", "v"): 1.0, ("L0H1", "logits", ""): 1.0})
    places = layout(with_ends)
    assert places["embed"][0] < places["L0H1"][0] < places["logits"][0]
    assert layout(Circuit({"a": "", "b": ""})).keys() == {"a", "b"}
    assert layout(Circuit({})) == {}


def test_inputs_keep_their_order():
    nodes = dict.fromkeys(["x0", "x1", "x2", "L1N0", "L1N1", "y0"], "")
    edges = [("x0", "L1N1"), ("x1", "L1N0"), ("x2", "L1N1"), ("L1N0", "y0"), ("L1N1", "y0")]
    places = layout(Circuit(nodes, {(*e, ""): 1.0 for e in edges}))
    assert places["x0"][1] > places["x1"][1] > places["x2"][1]


def test_describe_tells_nodes_and_the_strongest_edges_first():
    text = describe(Circuit({"a": "", "b": "", "c": ""}, {("a", "b", ""): 0.5, ("b", "c", "k"): -2.0}))
    assert text == "A graph of 3 nodes (a, b, c) and 2 edges: b to c (k) -2.00, a to b +0.50."
    many = Circuit({"a": "", **{f"b{i}": "" for i in range(20)}}, {("a", f"b{i}", ""): i + 1.0 for i in range(20)})
    assert "and 8 weaker ones" in describe(many)
    assert describe(Circuit({"a": ""})) == "A graph of 1 nodes (a) and 0 edges."


# Pruning -------------------------------------------------------------------------------------------------


def worth(kept):
    """Three nodes of different worth, and d, which harms."""
    return sum({"a": 10.0, "b": 1.0, "c": 0.1, "d": -1.0}[name] for name in kept)


def test_elimination_removes_harm_first_and_tells_the_score_after():
    order = elimination(worth, "abcd")
    assert [name for name, _ in order] == ["d", "c", "b", "a"]
    assert [value for _, value in order] == pytest.approx([11.1, 11.0, 10.0, 0.0])


def test_prune_keeps_the_smallest_set_that_is_good_enough():
    assert prune(worth, "abcd", keep=0.95) == {"a"}  # the whole has 10.1
    assert prune(worth, "abcd", keep=1.05) == {"a", "b"}
    assert prune(worth, "abcd", keep=2.0) == {"a", "b", "c", "d"}  # nothing is good enough: the whole
    assert prune(lambda kept: 1.0, "abc") == frozenset()
    with pytest.raises(ValueError, match=r"scores -0\.5: pruning keeps a share of a score above zero"):
        prune(lambda kept: -0.5, "abc")
