"""Checks of chapter 1's exercises: worked by hand, whole truth tables, every removal computed again in float64."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp_edu.checks.attention_heads import _first, _shaped
from interp_edu.checks.core import CheckFailed, Judge, _same, exercise
from interp_edu.checks.transformer import _matrices

Named = dict[str, Tensor]
Layers = list[tuple[Tensor, Tensor]]
Kept = list[list[int]]
Values = Sequence[Tensor | None]
Act = Callable[[Tensor], Tensor]
Edge = tuple[str, str]
Edges = dict[Edge, float]


def _all_inputs(n: int) -> Tensor:
    return torch.tensor(list(itertools.product([0, 1], repeat=n)), dtype=torch.float64)


def _outputs(judge: Judge, value: Any, want: Tensor, hidden: Tensor) -> Tensor:
    """An answer of the shape of the outputs; other shapes are told what they look like."""
    shape = tuple(want.shape)
    known: dict[tuple[int, ...], str] = {
        tuple(hidden.shape): "these are the hidden neurons: send them on through the last layer",
        shape[:1]: "keep the axis of outputs, also if there is only one",
        shape[1:]: "a row of outputs for each sample",
        shape[::-1]: "transposed: samples are rows",
    }
    known.pop(shape, None)
    return _shaped(judge, value, shape, known, "the output")


def _many(value: Any) -> Any:
    """A list of what a collection holds; anything else as it is."""
    value = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _entries(judge: Judge, answer: Any, *names: str) -> list[Any]:
    seen = sorted(map(str, answer)) if isinstance(answer, dict) else answer
    ok = isinstance(answer, dict) and set(answer) == set(names)
    judge.that(ok, f"a dictionary with {', '.join(names)} is expected", seen=seen)
    return [answer[name] for name in names]


# Ablation in float64, for 1.1, 1.5 and 1.7 -------------------------------------------------------


def _deep(layers: Layers, x: Tensor, act: Act = torch.relu) -> list[Tensor]:
    """The activations of every hidden layer of the whole network."""
    found, h = [], x.double()
    for W, b in layers[:-1]:
        h = act(h @ W.double() + b.double())
        found.append(h)
    return found


def _held(layers: Layers, x: Tensor, kept: Kept, instead: Values, *, skip: int = -1, act: Act = torch.relu) -> Tensor:
    """The output with neurons that are not kept held at given values (None: at their mean in this very run)."""
    h = x.double()
    for k, ((W, b), working, value) in enumerate(zip(layers[:-1], kept, instead, strict=True)):
        h = act(h @ W.double() + b.double())
        works = torch.full(h.shape[1:], k == skip)
        works[working] = True
        h = torch.where(works, h, h.mean(0) if value is None else value)
    return h @ layers[-1][0].double() + layers[-1][1].double()


def _slips(layers: Layers, x: Tensor, kept: Kept) -> Named:
    """What mistakes lead to."""
    clean = _deep(layers, x)
    means, pre = [h.mean(0) for h in clean], []
    for h, (W, b) in zip([x.double(), *clean], layers[:-1], strict=False):
        pre.append((h @ W.double() + b.double()).mean(0))
    sent = [means[0], *_deep([*layers[1:]], means[0])]
    others = [[i for i in range(len(m)) if i not in k] for m, k in zip(means, kept, strict=True)]
    fires = [h.sum(0) / (h > 0).sum(0).clamp(min=1) for h in clean]
    held, own, bias = functools.partial(_held, layers, x, kept), [None] * len(clean), layers[-1][1].double()
    rows = [torch.tensor([[i in k] for i in range(len(x))]) for k in kept]
    rows = [h.where(row, h.mean(0)) for h, row in zip(clean, rows, strict=True)]
    linear = [h.mean(0) for h in _deep(layers, x, torch.clone)]
    bare = [*((W, 0 * b) for W, b in layers[:-1]), layers[-1]]
    unbiased = _held(bare, x, kept, [h.mean(0) for h in _deep(bare, x)])
    late, left = "the means come from the run in which earlier neurons are held already", "hidden layer were left alone"
    early = "the mean was taken before the ReLU"
    return {
        "a layer's mean was sent through the next layer: take the mean of what comes out": held(sent),
        f"{late}: record them in a run of the whole network": held(own),
        "zero ablation: a neuron that is not kept is held at its mean, not at 0": held([0 * m for m in means]),
        "kept and removed are exchanged: those in `kept` work, all others are held": _held(layers, x, others, means),
        f"kept and removed are exchanged, and {late}": _held(layers, x, others, own),
        "nothing was held: this is the whole network's output": held(clean),
        f"{early}, or of the inputs: take the mean of activations": held(_deep(layers, x.double().mean(0))),
        f"{early}: take the mean of activations": held(pre),
        f"{early}, which came after: take the mean of activations": held([m.relu() for m in pre]),
        "the mean was taken over neurons: take it over samples, dim=0": held([h.mean(1, keepdim=True) for h in clean]),
        "one mean for a whole layer: each neuron has its own, dim=0": held([h.mean() for h in clean]),
        "this is the median: take the mean": held([h.median(0).values for h in clean]),
        "the first sample's activation stands in: take the mean": held([h[0] for h in clean]),
        "the mean was taken over samples on which the neuron fires: take it over all": held(fires),
        f"neurons of the last {left}: hold those not kept there as well": held(means, skip=len(clean) - 1),
        f"neurons of the first {left}: hold those not kept there as well": held(means, skip=0),
        "all neurons were held, also those in `kept`": _held(layers, x, [[] for _ in kept], means),
        "the ReLU is missing": _held(layers, x, kept, linear, act=torch.clone),
        "a ReLU at the output: the last layer has none": held(means).relu(),
        "the last layer's bias is missing": held(means) - bias,
        "the hidden layer's bias is missing": unbiased,
        "the biases are missing": unbiased - bias,
        "samples were kept, not neurons: rows are samples, columns neurons, [:, kept]": _held(
            layers, x, [[] for _ in kept], rows
        ),
    }


# 1.1 -------------------------------------------------------------------------------------------


@exercise("Faithful, complete, minimal")
def mean_ablated(fn: Any, judge: Judge) -> None:
    hand = [torch.eye(2), torch.tensor([0.0, -1.0]), torch.tensor([[1.0], [2.0]]), torch.tensor([0.5])]
    # activations (1, 2), (0, 0), (3, 1), (0, 5), (2, 0): the second neuron's mean is 1.6
    x = torch.tensor([[1.0, 3.0], [-1.0, -3.0], [3.0, 2.0], [0.0, 6.0], [2.0, -1.0]])
    want = torch.tensor([[4.7], [3.7], [6.7], [3.7], [5.7]]).double()
    cases = [("two neurons by hand, the first kept", [*hand, x], [0], want)]
    sizes = [(7, 4, 6, 3, [4, 1]), (20, 5, 9, 2, [0, 3, 8, 5]), (6, 2, 4, 1, []), (1, 3, 5, 2, [2])]
    for batch, inputs, neurons, outputs, kept in [*sizes, (5, 3, 4, 2, [2, 0, 3, 1])]:
        W_in, b_in = judge.randn(inputs, neurons), 0.7 * judge.randn(neurons)
        given = [W_in, b_in, judge.randn(neurons, outputs), judge.randn(outputs), judge.randn(batch, inputs) + 0.3]
        h = (given[4].double() @ W_in.double() + b_in.double()).relu()
        steady = [i for i in range(neurons) if i not in kept]
        h[:, steady] = h[:, steady].sum(0) / batch
        case = f"{neurons} neurons, {batch} samples, kept {kept}"
        cases.append((case, given, kept, h @ given[2].double() + given[3]))
    for case, given, kept, want in cases:
        mine = [t.clone() for t in given]
        got = judge.call(functools.partial(fn, *mine) if callable(fn) else fn, list(kept))  # mine are no copies
        layers = [(given[0], given[1]), (given[2], given[3])]
        got = _outputs(judge, got, want, _deep(layers, given[4])[-1])
        mistakes = {} if _same(got, want, 1e-4) else _slips(layers, given[4], [kept])
        judge.close(got, want, f"the output, {case}", mistakes=mistakes)
        names = zip(("W_in", "b_in", "W_out", "b_out", "x"), mine, given, strict=True)
        gone = [name for name, x, y in names if not torch.equal(x, y)]
        likely = "a tensor that was handed in was written to, so the next run has another network: clone() it first"
        judge.that(not gone, "what was handed in is as it was", seen=f"{', '.join(gone)} changed", likely=likely)


# 1.2 -------------------------------------------------------------------------------------------


def _share(part: int | float, of: int | float) -> float:
    return part / of if of else 1.0


def _wrong_shares(found: Edges, true: Edges) -> Named:
    def of(f: Iterable[Any], t: Iterable[Any]) -> list[float]:
        f, t = set(f), set(t)
        return [_share(len(f & t), len(f)), _share(len(f & t), len(t))]

    def heavy(edges: Edges) -> list[Edge]:
        return [edge for edge, weight in edges.items() if weight]

    def mass(edges: Edges) -> float:
        return _share(sum(abs(edges[e]) for e in both), sum(map(abs, edges.values())))

    both, (precision, recall) = set(found) & set(true), of(found, true)
    n, jaccard = len(both), 2 * [_share(len(both), len({*found, *true}))]
    f1 = _share(2 * n, len(found) + len(true))
    same = sum(found[e] == true[e] for e in both)
    undirected = of(map(frozenset, found), map(frozenset, true))
    nodes = of(itertools.chain(*found), itertools.chain(*true))
    wrong = {
        "precision and recall are exchanged: precision is the share of what was *found*": [recall, precision],
        "an edge and its reverse were taken for one: (sender, receiver) has a direction": undirected,
        "edges were compared together with their weights": [_share(same, len(found)), _share(same, len(true))],
        "these are shares of weight: an edge counts, whatever its weight": [mass(found), mass(true)],
        "these are the nodes' precision and recall: count edges": nodes,
        "edges of weight 0 were left out: a key counts, whatever its weight": of(heavy(found), heavy(true)),
        "this is the share of both among all that is in either: each has its own denominator": jaccard,
        "this is F1, twice: return precision and recall themselves": [f1, f1],
        "these are counts: divide by what was found, and by what is true": [n, n],
        "these are the shares that do *not* agree": [1 - precision, 1 - recall],
        "in percent: give shares from 0 to 1": [100 * precision, 100 * recall],
    }
    return {text: torch.tensor(value, dtype=torch.float64) for text, value in wrong.items()}


@exercise("A circuit is a graph")
def precision_recall(fn: Any, judge: Judge) -> None:
    hand_found = {("x", "a"): 1.0, ("a", "y"): -2.0, ("b", "x"): 0.5, ("a", "b"): 0.0, ("b", "y"): 3.0}
    hand_true = {("a", "y"): 4.0, ("x", "b"): 0.5, ("b", "y"): 3.0}
    cases = [("three true edges, five found, by hand", hand_found, hand_true, (2 / 5, 2 / 3))]
    for n in (4, 6, 9):
        names = [f"n{i}" for i in torch.randperm(n, generator=judge.generator).tolist()]
        pairs, chosen = list(itertools.permutations(names, 2)), []
        for share in (0.5, 0.35):
            take = judge.rand(len(pairs)) < share
            take[:2] = True
            weights = (judge.randn(len(pairs)) * (judge.rand(len(pairs)) > 0.2)).tolist()
            chosen.append({p: w for p, t, w in zip(pairs, take, weights, strict=True) if t})
        found, true = chosen
        true |= dict(list(found.items())[:2])
        n_both = sum(edge in true for edge in found)
        want = n_both / len(found), n_both / len(true)
        cases.append((f"{n} nodes, {len(found)} edges found, {len(true)} true", found, true, want))
    cases += [
        ("nothing found: there is no false one among them, so precision is 1", {}, hand_true, (1.0, 0.0)),
        ("nothing to find: none is missed, so recall is 1", hand_true, {}, (0.0, 1.0)),
        ("nothing found and nothing to find: both are 1", {}, {}, (1.0, 1.0)),
        ("nothing in common", {("x", "a"): 1.0}, {("a", "x"): 1.0, ("x", "y"): 2.0}, (0.0, 0.0)),
    ]
    for case, found, true, want in cases:
        mine = dict(found), dict(true)
        got = judge.call(fn, *mine)
        got = (got.precision, got.recall) if hasattr(got, "precision") and hasattr(got, "recall") else got
        got = (got["precision"], got["recall"]) if isinstance(got, dict) and {*got} == {"precision", "recall"} else got
        got = [float(v) for v in got] if isinstance(got, tuple | list) and len(got) == 2 else got
        got, right = judge.tensor(got, (2,), "a pair of two numbers"), torch.tensor(want).double()
        mistakes = {} if _same(got, right, 1e-4) else _wrong_shares(found, true)
        judge.close(got, right, f"precision and recall, {case}", mistakes=mistakes)
        judge.that(mine == (found, true), "the dictionaries are as they were", likely="a dictionary was changed")


# 1.3 -------------------------------------------------------------------------------------------


def _reached(edges: Iterable[Edge], start: Iterable[str]) -> set[str]:
    """Where edges lead from some nodes, the nodes included: grown until nothing is added."""
    found, edges = set(start), list(edges)
    while more := {b for a, b in edges if a in found} - found:
        found |= more
    return found


def _wrong_paths(edges: Edges, inputs: list[str], outputs: list[str]) -> dict[str, set[Edge]]:
    back = [(b, a) for a, b in edges]
    ahead, home, anyhow = _reached(edges, inputs), _reached(back, outputs), _reached([*edges, *back], inputs)
    turned = _reached(edges, outputs), _reached(back, inputs)
    go, come = {a for a, _ in edges} | set(outputs), {b for _, b in edges} | set(inputs)
    one, gone = "only one direction was looked at", "were dropped: the graph alone decides"

    def where(keep: Callable[[str, str], bool]) -> set[Edge]:
        return {(a, b) for a, b in edges if keep(a, b)}

    on = where(lambda a, b: a in ahead and b in home)
    return {
        f"{one}: from the inputs. Does each edge lead to an output as well?": where(lambda a, b: a in ahead),
        f"{one}: back from the outputs. Does an input lead to each edge?": where(lambda a, b: b in home),
        "reached from an input *and* leading to an output: this is `or`": where(lambda a, b: a in ahead or b in home),
        "the arrows were ignored: this is all that is connected with an input": where(lambda a, b: a in anyhow),
        "only the edges right at inputs and outputs: follow paths": where(lambda a, b: a in inputs or b in outputs),
        "these are the edges that are *not* on a path": set(edges) - on,
        "nothing was removed": set(edges),
        "dead ends were removed once: that makes new ones, so repeat": where(lambda a, b: a in come and b in go),
        f"edges of weight 0 {gone}": {e for e in on if edges[e]},
        f"edges of negative weight {gone}": {e for e in on if edges[e] >= 0},
        "inputs and outputs are exchanged": where(lambda a, b: a in turned[0] and b in turned[1]),
    }


def _graphs(judge: Judge) -> list[tuple[str, Edges, list[str], list[str]]]:
    hand = zip("xa ab by ac cd ef fb em xg gh kl zb xb".split(), (2, -1, 3, 1, 1, 4, 1, 1, 2, 1, 5, 7, 0), strict=True)
    edges = {(pair[0], pair[1]): float(weight) for pair, weight in hand}
    found = [("thirteen edges, by hand", edges, ["x", "z"], ["y"])]
    for n, share in ((9, 0.25), (12, 0.18), (13, 0.2)):
        names = [f"n{i}" for i in torch.randperm(n, generator=judge.generator).tolist()]
        pairs = [(i, j) for i, j in itertools.combinations(range(n), 2) if j > 1 and i < n - 2]
        take, weights = judge.rand(len(pairs)) < share, judge.randn(len(pairs))
        kept = [(names[i], names[j], float(w)) for (i, j), t, w in zip(pairs, take, weights, strict=True) if t]
        order = torch.randperm(len(kept), generator=judge.generator).tolist()
        edges = {kept[k][:2]: kept[k][2] for k in order}
        found.append((f"{n} nodes, {len(edges)} edges", edges, names[:2], names[-2:]))
    chain = {(f"c{i}", f"c{i + 1}"): 1.0 for i in reversed(range(20))}
    dead = {(f"d{i}", f"d{i + 1}"): 1.0 for i in range(9)} | {("c3", "d0"): 1.0}
    late = {(f"e{i}", f"e{i + 1}"): 1.0 for i in reversed(range(9))} | {("e9", "c5"): 1.0}
    found.append(("a long chain with a dead end and a tail from nowhere", chain | dead | late, ["c0"], ["c20"]))
    return [*found, ("no path at all", {("x", "a"): 1.0, ("b", "y"): 1.0}, ["x"], ["y"])]


@exercise("A circuit is a graph")
def on_paths(fn: Any, judge: Judge) -> None:
    for case, edges, inputs, outputs in _graphs(judge):
        mine = dict(edges)
        got = judge.call(fn, mine, list(inputs), list(outputs))
        likely = "a dictionary like the given one: {(sender, receiver): weight}"
        judge.that(isinstance(got, Mapping), "a dictionary is returned", seen=got, likely=likely)
        judge.that(mine == edges, "the given dictionary is as it was", seen="it changed", likely="make a new one")
        strange = [edge for edge in got if edge not in edges]
        judge.that(not strange, f"every edge is one of the graph, {case}", seen=strange[:3], likely=likely)
        ahead, home = _reached(edges, inputs), _reached([(b, a) for a, b in edges], outputs)
        want = {(a, b) for a, b in edges if a in ahead and b in home}
        if set(got) != want:
            slips = _wrong_paths(edges, inputs, outputs)
            likely = next((text for text, slip in slips.items() if slip == set(got)), "")
            a, b = min(want ^ set(got))
            why = f"no input leads to {a}" if a not in ahead else f"{b} leads to no output"
            why = "it is on a path from an input to an output" if (a, b) in want else why
            expected = "kept" if (a, b) in want else "gone"
            judge.fail(f"{a} to {b} is {expected}, {case}", seen=f"{len(got)} edges", likely=likely or why)
        changed = [edge for edge in want if got[edge] != edges[edge]]
        judge.that(not changed, f"the edges keep their weights, {case}", seen=changed[:3], likely="copy the weights")


# 1.4 -------------------------------------------------------------------------------------------

LOGIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "1 if at least one of the two is 1 (OR)": lambda a, b: ((a + b) > 0).double(),
    "1 if both are 1 (AND)": lambda a, b: a * b,
    "1 if exactly one is 1 (XOR)": lambda a, b: (a + b) % 2,
    "1 if the two are the same (XNOR)": lambda a, b: (a + b + 1) % 2,
    "the sum, 0, 1 or 2": lambda a, b: a + b,
    "input i alone": lambda a, b: a,
    "the second and not the first": lambda a, b: b * (1 - a),
    "twice the AND": lambda a, b: 2 * a * b,
    "minus the sum": lambda a, b: -a - b,
    "always 0": lambda a, b: 0 * a,
}


def _odd(column: Tensor, x: Tensor, i: int, j: int) -> str:
    """What a wrong output looks like, from its truth table."""
    rows, n = torch.arange(len(x)), x.shape[1]  # to flip input k is to flip a bit of the row's number
    reads = [k for k in range(n) if float((column - column[rows ^ (1 << (n - 1 - k))]).abs().max()) > 1e-3]
    if others := [k for k in reads if k not in (i, j)]:
        first = ", not always 0 and 1" if set(reads) <= {0, 1} else ""
        return f"it depends on input {others[0]}: only inputs i and j may matter{first}"
    text = next((text for text, logic in LOGIC.items() if _same(column, logic(x[:, i], x[:, j]), 1e-4)), "")
    return f"it is {text}" if text else "look at the four cases of inputs i and j by hand"


@exercise("A circuit by hand")
def adder(fn: Any, judge: Judge) -> None:
    for case, n in enumerate((5, 4, 7, 2, 3, 8)):
        i, j = torch.randperm(n, generator=judge.generator)[:2].tolist()
        i, j = ((2, 4), (3, 1))[case] if case < 2 else (i, j)
        got = judge.call(fn, n, i, j)
        if isinstance(got, dict) and np.shape(got.get("W_in", ())) == (2, n) != (n, 2):
            judge.fail("W_in has a row for each input", seen=(2, n), expected=(n, 2), likely="transposed: x @ W_in")
        shapes: dict[str, tuple[int | str, ...]] = {"W_in": (n, "neurons"), "b_in": ("neurons",)}
        W = _matrices(judge, got, shapes | {"W_out": ("neurons", 2), "b_out": (2,)})
        likely = "with one job each it takes more; one neuron can serve both outputs"
        judge.that(len(W["b_in"]) <= 2, "at most two neurons", seen=len(W["b_in"]), expected="2", likely=likely)
        x = _all_inputs(n)
        out = (x @ W["W_in"] + W["b_in"]).relu() @ W["W_out"] + W["b_out"]
        want = torch.stack([(x[:, i] + x[:, j]) % 2, x[:, i] * x[:, j]], 1)
        claim = f"n = {n}, i = {i}, j = {j}, all {2**n} inputs"
        if not _same(out, want, 1e-4):
            if _same(out.flip(1), want, 1e-4):
                judge.fail(claim, seen=out[-1], expected=want[-1], likely="the two outputs are exchanged: sum, carry")
            k = int(not _same(out[:, 1], want[:, 1], 1e-4) and _same(out[:, 0], want[:, 0], 1e-4))
            worst = int((out[:, k] - want[:, k]).abs().argmax())
            seen = f"{float(out[worst, k]):.4g} for the input {x[worst].long().tolist()}"
            name, likely = ("output 0, the sum bit", "output 1, the carry")[k], _odd(out[:, k], x, i, j)
            judge.fail(f"{name}, {claim}", seen=seen, expected=f"{float(want[worst, k]):g}", likely=likely)
        judge.that(True, claim)


# 1.5 -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=20)
def _networks_in_layers(seed: int) -> list[tuple[Any, ...]]:
    # x = 0, 1, 2, 3: layer 1 is (2, 0), (0, 1), (0, 2), (0, 3), layer 2 is (5, 1), (2, 1), (3, 3), (4, 5)
    hand = [[[-2.0, 1.0]], [2.0, 0.0]], [[[2.0, 1.0], [1.0, 2.0]], [1.0, -1.0]], [[[2.0], [-1.0]], [1.0]]
    net = [(torch.tensor(W), torch.tensor(b)) for W, b in hand]
    x, judge = torch.arange(4.0)[:, None], Judge("", "", seed)
    found = [
        ("by hand, one neuron of each layer held", net, x, [[1], [0]], torch.tensor([[2.5], [4.5], [6.5], [8.5]])),
        ("by hand, no neuron of layer 2 works", net, x, [[1], []], torch.full((4, 1), 5.5)),
    ]
    drawn = [((3, 6, 4, 2), [[4, 1], [2, 0]]), ((4, 5, 7, 3), [[2], []]), ((5, 8, 2), [[6, 1, 3]])]
    drawn += [((2, 7, 6, 5, 1), [[0, 3], [1, 3], [4, 0, 2]]), ((3, 4, 6, 2), [[0, 1, 2, 3], [5, 4]])]
    drawn.append(((3, 6, 8, 6, 2), [[2, 5], [0, 4, 7], [1, 2, 3, 5]]))
    for batch, (sizes, kept) in enumerate(drawn, start=8):
        net = [(judge.randn(a, b), 0.5 * judge.randn(b) + 0.3) for a, b in itertools.pairwise(sizes)]
        x = judge.randn(batch, sizes[0]) + 0.2
        want = _held(net, x, kept, [h.sum(0) / batch for h in _deep(net, x)])
        found.append((f"layers of {', '.join(map(str, sizes))}, kept {kept}", net, x, kept, want))
    return [(*case, functools.cache(functools.partial(_slips, *case[1:4]))) for case in found]


@exercise("Faithful, complete, minimal")
def circuit_output(fn: Any, judge: Judge) -> None:
    for case, layers, x, kept, want, slips in _networks_in_layers(judge.generator.initial_seed()):
        mine = [(W.clone(), b.clone()) for W, b in layers]
        want, got = want.double(), judge.call(fn, mine, x, [list(k) for k in kept])
        got = _outputs(judge, got, want, _deep(layers, x)[-1])
        mistakes = {} if _same(got, want, 1e-4) else slips()
        likely = "record the means of all layers in a run of the whole network, after the ReLU; hold neurons at those"
        judge.close(got, want, case, mistakes=mistakes, likely=likely)
        whole = all(torch.equal(a, b) for p, q in zip(mine, layers, strict=True) for a, b in zip(p, q, strict=True))
        likely = "a weight or bias was written to: the next call has another network"
        judge.that(whole, "the network is as it was", seen="its weights changed", likely=likely)


def _matrix(rows: str) -> Tensor:
    """Rows of numbers as a matrix, one row as a vector, in float64."""
    found = torch.tensor([[float(word) for word in row.split()] for row in rows.split("/")], dtype=torch.float64)
    return found if len(found) > 1 else found[0]


# 1.6 -------------------------------------------------------------------------------------------

W_IN = "0 4 1 0 0 0 0 0 0 1 0 1 / 2 0 0 0 1 0 -1 1 0 0 0 1 / 0 0 0 1 0 0 -1 0 -3 0 .02 0 /"  # as in the notebook
W_IN += "0 4 1 0 0 0 0 0 0 1 0 0 / 2 0 0 0 1 0 -1 1 0 0 0 1 / 0 0 0 1 0 .01 0 0 3 0 0 0"
B_IN = "0 -4 -1 0 -1 5 0 0 0 -2 3 -2"
W_OUT = ".25 0 .02 .01 -2 .01 2 .5 .01 -3 -1 .03 / 0 .125 .5 -.02 1 1.5 -1 .02 .01 3 .01 -.02"
LIMIT = 0.1


@functools.cache
def _jobs() -> tuple[Tensor, Tensor, Tensor]:
    """The activations on all 64 inputs, W_out, and the activations with each input flipped."""
    W_in, b_in, x = _matrix(W_IN), _matrix(B_IN), _all_inputs(6)
    flipped = (x - torch.eye(6).double()[:, None]).abs()
    return (x @ W_in + b_in).relu(), _matrix(W_OUT).T, (flipped @ W_in + b_in).relu()


@functools.cache
def _changes(how: str = "mean") -> Tensor:
    """By how much each output changes at most when a neuron is removed, [neuron, output]."""
    h, W_out = _jobs()[:2]
    return (h - (h.mean(0) if how == "mean" else 0)).abs().max(0).values[:, None] * W_out.abs()


def _above(values: Tensor) -> set[int]:
    return {k for k, value in enumerate(values.tolist()) if value > LIMIT}


def _integers(judge: Judge, value: Any, what: str) -> set[int]:
    """A set of integers from any collection of them, or from one."""
    found = _many(value) if isinstance(_many(value), list) else [value]
    ok = all(isinstance(v, int | float | np.number | Tensor) and v == int(v) and v is not True for v in found)
    likely = "numbers in braces, such as {0, 5}; set() if there are none"
    judge.that(ok, f"{what} is a set of numbers", seen=value, likely=likely)
    return {int(v) for v in found}


def _odd_neuron(k: int, output: int, lost: bool) -> str:
    """Why a neuron belongs to an answer, or does not."""
    h = _jobs()[0]
    change, other = _changes()[k, output], _changes()[k, 1 - output]
    if lost and other > LIMIT:
        return f"neuron {k} matters for both outputs: a neuron may have two jobs"
    if lost:
        return f"without neuron {k} this output changes by up to {float(change):.2f}"
    if float(h[:, k].max()) == 0:
        return f"neuron {k} never fires on these inputs: a large weight alone does nothing"
    if float(h[:, k].max() - h[:, k].min()) < 0.1:
        return f"neuron {k} is always on: 0 is not what it says on average. Hold it at its mean, and nothing changes"
    if other > LIMIT:
        return f"neuron {k} matters for the other output only"
    return f"without neuron {k} this output changes by {float(change):.3f} at most, less than {LIMIT}"


@exercise("A network with two jobs")
def two_jobs(answer: Any, judge: Judge) -> None:
    names = ("first", "second", "reads")
    _entries(judge, answer, *names)
    got = {name: _integers(judge, answer[name], name) for name in names}
    for name, most in (("first", 12), ("second", 12), ("reads", 6)):
        strange = {v for v in got[name] if not 0 <= v < most}
        judge.that(not strange, f"{name}: numbers go from 0 to {most - 1}", seen=strange, likely="count from 0")
    want = first, second = [_above(column) for column in _changes().T]
    zero, (h, W_out, flipped) = [_above(column) for column in _changes("zero").T], _jobs()
    heavy = [set(column.abs().topk(3).indices.tolist()) for column in W_out.T]
    mine = [got["first"], got["second"]]
    reasons = {
        "the two outputs are exchanged": mine == [second, first],
        "zero ablation: a neuron that is always on seems to matter. Hold neurons at their means": mine == zero,
        "these have the largest weights to the output: what counts is what happens without them": mine == heavy,
        "the neurons of both outputs together: ask for each output apart": mine == 2 * [first | second],
        "the shared neuron counts for both outputs": mine == [first - second, second - first],
        "only the shared neuron: also those that matter for one output": mine == 2 * [first & second],
        "these are the neurons that do *not* matter": mine == [set(range(12)) - w for w in want],
        "the mean of *signed* changes is 0 for every neuron: take the largest absolute one": mine == [set(), set()],
        "counted from 1: neurons are numbered from 0": mine == [{k + 1 for k in w} for w in want],
    }
    likely = _first(reasons)
    for k, name in enumerate(names[:2]):
        claim = f"the neurons that matter for the {name} output"
        if odd := sorted(mine[k] - want[k]) or sorted(want[k] - mine[k]):
            judge.fail(claim, seen=mine[k], likely=likely or _odd_neuron(odd[0], k, lost=odd[0] in want[k]))
        judge.that(True, claim)
    flips = ((flipped - h) @ W_out).abs().max(1).values  # [input, output]
    others, reads = map(_above, flips.T)
    reasons = {
        "these are the inputs of the first output": got["reads"] == others,
        "these are the inputs that do not matter": got["reads"] == set(range(6)) - reads,
        "these are numbers of neurons: which of the six *inputs* does it depend on?": got["reads"] == want[1],
    }
    k = min(got["reads"] ^ reads, default=0)
    likely = _first(reasons) or f"flipping input {k} changes the second output by up to {float(flips[k, 1]):.2f}"
    judge.that(got["reads"] == reads, "the inputs that matter for the second output", seen=got["reads"], likely=likely)


# 1.7 -------------------------------------------------------------------------------------------

FIRST = "1 1 0 0 2 0 0 0 / 0 0 -2 -1 0 0 1 0 / 1 0 0 0 2 .5 0 0 / 0 0 2 1 0 .5 0 0 / 0 -1 0 0 0 0 1 1"
SECOND = "0 0 0 0 0 1 0 -2 / 0 0 0 0 0 0 1 0 / 0 1 0 0 0 0 0 0 / -1 -2 0 2 0 0 0 0 /"
SECOND += "0 0 0 0 0 0 0 1 / 0 0 1 0 1 0 0 0 / 0 0 0 0 1 0 1 0 / 3 0 0 0 0 0 0 0"
BACKED_UP = [
    (_matrix(FIRST), _matrix("-1 0 0 0 -2 1 0 -1")),
    (_matrix(SECOND), _matrix("0 0 1 0 -4 0 0 0")),
    (_matrix("-2 / .05 / -.03 / .5 / 2 / 1 / .04 / .5"), _matrix(".04")),
]
NEURONS = [f"L{layer}N{k}" for layer in (1, 2) for k in range(8)]


@functools.cache
def _broken(without: frozenset[str]) -> int:
    """How many of the 32 answers are wrong when some neurons are held at their means."""
    layers, x = BACKED_UP, _all_inputs(5)
    kept = [[k for k in range(8) if f"L{layer}N{k}" not in without] for layer in (1, 2)]
    yes = _held(layers, x, kept, [h.mean(0) for h in _deep(layers, x)])[:, 0] > 0.5
    right = (x[:, 0] * x[:, 2] + x[:, 3] * (1 - x[:, 1])) > 0.5
    return int((yes != right).sum())


@functools.cache
def _backups() -> tuple[set[str], set[frozenset[str]], set[str]]:
    """The neurons needed on their own, the pairs of others that cannot go together, and the neurons that never fire."""
    alone = {name for name in NEURONS if _broken(frozenset([name]))}
    both = map(frozenset, itertools.combinations([name for name in NEURONS if name not in alone], 2))
    peaks = torch.cat([h.max(0).values for h in _deep(BACKED_UP, _all_inputs(5))]).tolist()
    silent = {name for name, peak in zip(NEURONS, peaks, strict=True) if peak == 0}
    return alone, {pair for pair in both if _broken(pair)}, silent


def _named(judge: Judge, value: Any, what: str) -> str:
    value = _many(value)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    name = value.strip().upper() if isinstance(value, str) else value
    judge.that(name in NEURONS, f"{what}: a neuron has a name such as 'L1N3' or 'L2N0'", seen=value)
    return name


@exercise("Faithful, complete, minimal")
def missed(answer: Any, judge: Judge) -> None:
    alone, pairs, silent = map(_many, _entries(judge, answer, "alone", "pairs", "silent"))
    pairs = [_many(pair) for pair in pairs] if isinstance(pairs, list) else pairs
    needed, want, never = _backups()
    alone = {_named(judge, name, "alone") for name in (alone if isinstance(alone, list) else [alone])}
    if alone != needed:
        odd = min(alone ^ needed)
        likely = f"without {odd}, {_broken(frozenset([odd]))} of the 32 answers are wrong"
        likely = "these are the neurons that can go alone" if alone == set(NEURONS) - needed else likely
        judge.fail("the neurons that are needed on their own", seen=sorted(alone), likely=likely)
    ok = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    judge.that(ok, "pairs: a set of pairs of names", seen=pairs, likely='such as {("L1N1", "L2N5"), ("L1N1", "L1N6")}')
    found = {frozenset(_named(judge, name, "pairs") for name in pair) for pair in pairs}
    claim, seen = "the pairs that cannot go together", sorted(map(sorted, found))
    for pair in sorted(map(sorted, found - want)):
        likely = f"without both {' and '.join(pair)} all answers are still right"
        if by_itself := sorted(needed & set(pair)):
            likely = f"{by_itself[0]} is needed on its own already: take pairs of neurons that can each go alone"
        judge.fail(claim, seen=seen, likely=likely)
    likely = "a pair is missing: try all, across layers and within one, also neurons that never fire"
    judge.that(found == want, claim, seen=seen, likely=likely)
    silent = _named(judge, silent, "silent")
    likely = f"{silent} fires on some of the inputs: look for one whose activations are all 0"
    likely = f"{silent} never fires, but it is in none of the pairs" if silent in never else likely
    judge.that(
        silent in never & set().union(*want),
        "the neuron that never fires and is needed in company",
        seen=silent,
        likely=likely,
    )


# 1.8 -------------------------------------------------------------------------------------------

STATEMENTS = {
    "a": (False, "faithful means faithful to a metric: another one may look at what the circuit does not do"),
    "b": (False, "something else may do the same job, or step in when it is gone: 1.7"),
    "c": (True, "the mean keeps what the neuron says on average, and takes away how it tells inputs apart"),
    "d": (True, "what comes after counts on it: losing it shifts every output, though it tells nothing: 1.6"),
    "e": (False, "a backup outside the circuit shows only when the same parts are knocked out of both: completeness"),
    "f": (True, "if random subgraphs of that size do as well, being faithful says nothing about this one"),
    "g": (False, "a sender that does not vary on the data tells the receiver nothing, whatever the weight: 1.6"),
    "h": (False, "that the rest can go shows that the kept part suffices; the rest may do the same job beside it"),
    "i": (False, "five networks of one kind are five cases: other sizes, data or trainings may do it otherwise"),
    "j": (True, "what one layer does may be spread over all its neurons, and in another basis sit in one direction"),
}


@exercise("What is evidence")
def statements(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)


# 1.9 -------------------------------------------------------------------------------------------

Score = Callable[[set[str]], float]


class _Counted:
    """A score of a set of names that counts how often it is asked."""

    def __init__(self, nodes: list[str], of: Score):
        self.nodes, self.of, self.calls, self.trouble = nodes, of, 0, ""

    def __call__(self, kept: Any) -> float:
        self.calls += 1
        kept = {kept} if isinstance(kept, str) else set(kept)
        if self.calls > 3 * len(self.nodes) ** 2:
            self.trouble = f"score was called more than 3n² times for {len(self.nodes)} nodes"
        if strange := kept - set(self.nodes):
            self.trouble = f"score was asked about {min(map(str, strange))}, which is no node of the network"
        if self.trouble:
            raise ValueError(self.trouble)
        return self.of(kept)


def _additive(weights: Mapping[str, float], groups: Sequence[Sequence[str]] = ()) -> Score:
    """The sum of what nodes bring; of a group only the best member that is there counts."""
    grouped = {name for group in groups for name in group}

    def score(kept: set[str]) -> float:
        own = float(sum(weights[name] for name in kept if name not in grouped))
        return own + sum(max((weights[name] for name in group if name in kept), default=0.0) for group in groups)

    return score


def _covered(kept: set[str]) -> float:
    """How many of six jobs are done: g does most alone, and is not needed."""
    jobs = {"g": "2345", "p": "123", "q": "456", "r": "1"}
    return float(len({job for name in kept for job in jobs[name]}))


@functools.lru_cache(maxsize=20)
def _networks(seed: int) -> list[tuple[str, list[str], Score, float]]:
    """Nodes in an order, a score, and what is enough. All numbers are sums of eighths: no rounding."""
    judge = Judge("", "", seed)
    names = [f"L0H{k}" for k in range(8)]
    eight = dict(zip(names, (4.0, 0.125, 2.0, 0.0, 0.25, 0.5, 0.0, 1.0), strict=True))
    twin = {"a": 2.0, "b": 2.0, "c": 1.0, "d": 0.0}
    harm = {"a": 1.0, "c": 6.0, "n": -4.0, "d": 0.5, "e": 0.5, "z": 1.0}  # a and z can go when n has gone
    found = [
        ("eight nodes that add up", names, _additive(eight), 7.0),
        ("a and b each do the same job", list("abcd"), _additive(twin, ["ab"]), 2.5),
        ("n does harm: when it is gone, others may go", list("acndez"), _additive(harm), 5.0),
        ("jobs done by several nodes", list("qgpr"), _covered, 6.0),
        ("nothing is enough already", list("pqr"), _additive({"p": 1.0, "q": -0.5, "r": 0.25}), -1.0),
        ("all are needed", list("pqrs"), _additive(dict.fromkeys("pqrs", 1.5)), 6.0),
    ]
    for n in (14, 18):
        names = [f"n{k}" for k in torch.randperm(n, generator=judge.generator).tolist()]
        eighths = torch.randint(-4, 17, (n,), generator=judge.generator)
        weights = {name: int(w) / 8 for name, w in zip(names, eighths, strict=True)}
        groups = [names[0:9:4], names[1:9:5]]
        of = _additive(weights | dict.fromkeys([*groups[0], *groups[1]], 1.5), groups)
        found.append((f"{n} nodes at random, two jobs with backups", names, of, int(of(set(names)) * 6.4) / 8))
    return found


@exercise("Pruning")
def pruned(fn: Any, judge: Judge) -> None:
    for case, nodes, of, enough in _networks(judge.generator.initial_seed()):
        score = _Counted(nodes, of)
        try:
            got = judge.call(fn, score, list(nodes), enough)
        except CheckFailed:
            subsets = "to try all subsets takes too long: remove one node after the other"
            likely = "score takes a set of names" if "asked" in score.trouble else subsets
            judge.that(not score.trouble, score.trouble, likely=likely)
            raise
        got = _many(got)
        ok = isinstance(got, list) and all(isinstance(name, str) for name in got)
        judge.that(ok, "a set of names is returned", seen=got, likely="return the nodes that are kept, nothing else")
        kept, whole = set(got), of(set(nodes))
        judge.that(kept <= set(nodes), "only nodes of the network are kept", seen=sorted(kept - set(nodes)))
        drops, value = {name: of(set(nodes) - {name}) for name in nodes}, of(kept)
        likely = "the last removal was one too many: does score(kept) still reach `enough`?"
        if kept == {name for name in nodes if drops[name] < enough}:
            likely = "each of these could go alone, but not all of them together: two may do the same job"
        elif of(set(nodes) - kept) >= enough:
            likely = "these look like the nodes that were removed: return those that are kept"
        elif kept == {name for name in nodes if of({name}) >= enough}:
            likely = "a node on its own need not be enough: start with all and remove"
        judge.that(value >= enough, f"the kept nodes score at least {enough:g}, {case}", seen=value, likely=likely)
        if more := [name for name in nodes if name in kept and of(kept - {name}) >= enough]:
            after = of(kept - {more[0]})
            likely = "a node that was needed at first may not be later: go on until no single one can go"
            likely = "a score of exactly `enough` is enough (>=)" if after == enough else likely
            if kept == {name for name in nodes if drops[name] < whole}:
                likely = "that the score falls without a node does not mean that it falls below `enough`"
            likely = "nothing was removed" if kept == set(nodes) else likely
            seen = f"without {more[0]} the score is {after:g}"
            judge.fail(f"no kept node can go, {case}", seen=seen, expected=f"< {enough:g}", likely=likely)
        judge.that(True, case)
