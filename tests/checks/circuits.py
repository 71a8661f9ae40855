"""Chapter 1's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import itertools
import random

import numpy as np
import torch

from interp_edu.circuits import Agreement
from tests.checks.bank import Answers

relu = torch.relu

# 1.1 mean_ablated


def ablating(instead=lambda h, pre, x, net: h.mean(0), *, swap=False, act=relu, end=lambda out, b_out: out + b_out):
    """The output with neurons that are not kept replaced by `instead`, broadcast."""

    def mean_ablated(W_in, b_in, W_out, b_out, x, kept):
        pre = x @ W_in + b_in
        h = act(pre)
        works = torch.zeros(h.shape[1], dtype=torch.bool)
        works[kept] = True
        frozen = torch.where(works ^ swap, h, instead(h, pre, x, (W_in, b_in)))
        return end(frozen @ W_out, b_out)

    return mean_ablated


def in_loops(W_in, b_in, W_out, b_out, x, kept):
    """Right: sample by sample, in plain Python."""
    x, W_in, b_in, W_out, b_out = (t.tolist() for t in (x, W_in, b_in, W_out, b_out))
    h = [
        [
            max(sum(a * w for a, w in zip(row, col, strict=True)) + b, 0)
            for col, b in zip(zip(*W_in, strict=False), b_in, strict=False)
        ]
        for row in x
    ]
    means = [sum(column) / len(h) for column in zip(*h, strict=True)]
    h = [[v if k in kept else means[k] for k, v in enumerate(row)] for row in h]
    return [
        [
            sum(a * w for a, w in zip(row, col, strict=True)) + b
            for col, b in zip(zip(*W_out, strict=False), b_out, strict=False)
        ]
        for row in h
    ]


def in_numpy(W_in, b_in, W_out, b_out, x, kept):
    W_in, b_in, W_out, b_out, x = (t.double().numpy() for t in (W_in, b_in, W_out, b_out, x))
    h = np.maximum(x @ W_in + b_in, 0)
    off = [k for k in range(h.shape[1]) if k not in kept]
    h[:, off] = h[:, off].mean(axis=0)
    return h @ W_out + b_out


def as_a_bias(W_in, b_in, W_out, b_out, x, kept):
    """Right: what the removed neurons say on average is one more bias; only the kept are run."""
    usual = relu(x @ W_in + b_in).mean(0)
    usual[kept] = 0
    return relu(x @ W_in[:, kept] + b_in[kept]) @ W_out[kept] + (usual @ W_out + b_out)


def zeroed_weights(W_in, b_in, W_out, b_out, x, kept):
    off = [k for k in range(len(b_in)) if k not in kept]
    means = relu(x @ W_in + b_in).mean(0)
    W_in[:, off] = 0
    b_in[off] = means[off]
    return relu(x @ W_in + b_in) @ W_out + b_out


def kept_rows(W_in, b_in, W_out, b_out, x, kept):
    h = relu(x @ W_in + b_in)
    frozen = h.mean(0).repeat(len(x), 1)
    rows = [k for k in kept if k < len(x)]
    frozen[rows] = h[rows]
    return frozen @ W_out + b_out


def shifted_bias(W_in, b_in, W_out, b_out, x, kept):
    out = as_a_bias(W_in, b_in, W_out, b_out, x, kept)
    b_out += 1
    return out


MEAN_ABLATED = Answers(
    right=[ablating(), in_loops, in_numpy, as_a_bias],
    wrong=[
        (ablating(lambda h, *_: torch.zeros(())), "zero ablation"),
        (ablating(swap=True), "exchanged"),
        (ablating(lambda h, *_: h), "nothing was held"),
        (ablating(lambda h, *_: h.mean(1, keepdim=True)), "over neurons"),
        (ablating(lambda h, *_: h.mean()), "for a whole layer"),
        (ablating(lambda h, pre, *_: pre.mean(0)), "before the ReLU"),
        (ablating(lambda h, pre, *_: relu(pre.mean(0))), "before the ReLU"),
        (ablating(lambda h, pre, x, net: relu(x.mean(0) @ net[0] + net[1])), "or of the inputs"),
        (ablating(lambda h, *_: h.sum(0) / (h > 0).sum(0).clamp(min=1)), "on which the neuron fires"),
        (ablating(lambda h, *_: h.median(0).values), "median"),
        (ablating(lambda h, *_: h[0]), "the first sample's"),
        (ablating(act=lambda pre: pre), "the ReLU is missing"),
        (ablating(end=lambda out, b_out: out), "the last layer's bias is missing"),
        (ablating(end=lambda out, b_out: relu(out + b_out)), "the last layer has none"),
        (lambda W_in, b_in, *rest: ablating()(W_in, 0 * b_in, *rest), "the hidden layer's bias is missing"),
        (
            lambda W_in, b_in, W_out, b_out, *rest: ablating()(W_in, 0 * b_in, W_out, 0 * b_out, *rest),
            "the biases are missing",
        ),
        (lambda *given: ablating()(*given[:-1], []), "all neurons were held"),
        (
            lambda *given: (out := ablating()(*given[:-1], range(len(given[1])))).mean(0).expand_as(out),
            "all neurons were held",
        ),
        (lambda W_in, b_in, W_out, b_out, x, kept: relu(x @ W_in + b_in), "the hidden neurons"),
        (lambda *given: ablating()(*given)[:, 0], "the axis of outputs"),
        (lambda *given: ablating()(*given).mean(0), "a row of outputs for each sample"),
        (lambda *given: None, "None"),
        (kept_rows, "samples were kept, not neurons"),
        (zeroed_weights, "changed"),
        (shifted_bias, "b_out changed"),
    ],
)

# 1.2 precision_recall


def share(part, of):
    return part / of if of else 1.0


def judged(f=lambda edges: set(edges), *, over=lambda found, true: (len(found), len(true)), then=lambda p, r: (p, r)):
    def precision_recall(found, true):
        a, b = f(found), f(true)
        both = len(a & b)
        n, m = over(a, b)
        return then(share(both, n), share(both, m))

    return precision_recall


def counted(found, true):
    """Right: edge by edge, returned as a dictionary."""
    hits = sum(1 for edge in found if edge in true)
    misses = sum(1 for edge in true if edge not in found)
    recall = 1 - misses / len(true) if len(true) else 1
    return {"precision": 1 if not found else hits / len(found), "recall": recall}


def by_weight(found, true):
    both = set(found) & set(true)
    return tuple(share(sum(abs(c[e]) for e in both), sum(map(abs, c.values()))) for c in (found, true))


def emptied(found, true):
    answer = judged()(dict(found), dict(true))
    found.clear()
    return answer


PRECISION_RECALL = Answers(
    right=[
        judged(),
        counted,
        lambda found, true: Agreement.of(found, true),
        lambda found, true: torch.tensor(judged()(found, true)),
        lambda found, true: [np.float64(v) for v in judged()(found, true)],
    ],
    wrong=[
        (judged(then=lambda p, r: (r, p)), "exchanged"),
        (judged(lambda edges: {frozenset(e) for e in edges}), "has a direction"),
        (judged(lambda edges: {tuple(sorted(e)) for e in edges}), "has a direction"),
        (judged(lambda edges: set(edges.items())), "together with their weights"),
        (by_weight, "shares of weight"),
        (judged(lambda edges: {name for e in edges for name in e}), "the nodes'"),
        (judged(lambda edges: {e for e, w in edges.items() if w}), "weight 0"),
        (judged(over=lambda a, b: (len(a | b),) * 2), "in either"),
        (judged(then=lambda p, r: (share(2 * p * r, p + r),) * 2), "F1, twice"),
        (lambda found, true: (len(set(found) & set(true)),) * 2, "these are counts"),
        (judged(then=lambda p, r: (1 - p, 1 - r)), "do *not* agree"),
        (judged(then=lambda p, r: (100 * p, 100 * r)), "percent"),
        (judged(then=lambda p, r: p), "a pair of two numbers"),
        (lambda f, t: (len(set(f) & set(t)) / len(f), len(set(f) & set(t)) / len(t)), "division by zero"),
        (lambda f, t: judged()(f, t) if f else (0.0, 0.0), "nothing found"),
        (lambda f, t: judged()(f, t) if t else (0.0, 0.0), "nothing to find"),
        (lambda f, t: judged()(f, t) if f and t else (0.0, 0.0), "nothing found"),
        (lambda f, t: judged()(f, t) if f or t else (float("nan"),) * 2, "NaN"),
        (lambda f, t: [*judged()(f, t), 0.5], "wrong shape"),
        (emptied, "a dictionary was changed"),
        (lambda found, true: None, "None"),
    ],
)

# 1.3 on_paths


def reached(edges, start):
    found = set(start)
    while more := {b for a, b in edges if a in found} - found:
        found |= more
    return found


def keeping(keep):
    """The edges for which keep(a, b, ahead, home) holds."""

    def on_paths(edges, inputs, outputs):
        ahead, home = reached(edges, inputs), reached([(b, a) for a, b in edges], outputs)
        return {(a, b): w for (a, b), w in edges.items() if keep(a, b, ahead, home)}

    return on_paths


right_paths = keeping(lambda a, b, ahead, home: a in ahead and b in home)


def by_nodes(edges, inputs, outputs):
    """Right: nodes first; an edge between two nodes on paths is on one."""
    ahead, home = reached(edges, inputs), reached([(b, a) for a, b in edges], outputs)
    nodes = ahead & home
    return {e: w for e, w in edges.items() if set(e) <= nodes}


def by_rounds(edges, inputs, outputs, rounds=10**6):
    """Right, with enough rounds: removes dead ends until nothing changes."""
    edges = dict(edges)
    for _ in range(rounds):
        senders, receivers = {a for a, _ in edges} | set(outputs), {b for _, b in edges} | set(inputs)
        bad = [(a, b) for a, b in edges if a not in receivers or b not in senders]
        if not bad:
            break
        for edge in bad:
            del edges[edge]
    return edges


def by_walking(edges, inputs, outputs, first=False):
    """Right: every path is walked (or, wrong, only the first one found)."""
    found = set()

    def walk(node, trail):
        if node in outputs:
            found.update(trail)
        for a, b in edges:
            if a == node and not (first and found):
                walk(b, [*trail, (a, b)])

    for start in inputs:
        walk(start, [])
    return {edge: edges[edge] for edge in edges if edge in found}


def one_pass(edges, inputs, outputs):
    ahead, home = set(inputs), set(outputs)
    for a, b in edges:
        if a in ahead:
            ahead.add(b)
    for a, b in edges:
        if b in home:
            home.add(a)
    return {(a, b): w for (a, b), w in edges.items() if a in ahead and b in home}


def shortest(edges, inputs, outputs):
    best = {}
    for start in inputs:
        trails = [[start]]
        while trails:
            if ends := [t for t in trails if t[-1] in outputs]:
                best |= {pair: edges[pair] for t in ends for pair in itertools.pairwise(t)}
                break
            trails = [[*t, b] for t in trails for a, b in edges if a == t[-1]]
    return best


def undirected(edges, inputs, outputs):
    both = [*edges, *[(b, a) for a, b in edges]]
    found = reached(both, inputs) & reached(both, outputs)
    return {(a, b): w for (a, b), w in edges.items() if a in found}


def of_weight(keep):
    def on_paths(edges, inputs, outputs):
        return {e: w for e, w in right_paths(edges, inputs, outputs).items() if keep(w)}

    return on_paths


def in_place(edges, inputs, outputs):
    kept = right_paths(edges, inputs, outputs)
    for edge in set(edges) - set(kept):
        del edges[edge]
    return edges


def complement(edges, inputs, outputs):
    kept = right_paths(edges, inputs, outputs)
    return {edge: w for edge, w in edges.items() if edge not in kept}


def joined(edges, inputs, outputs):
    return {(a, b): 1.0 for a in inputs for b in outputs if b in reached(edges, [a])}


ON_PATHS = Answers(
    right=[right_paths, by_nodes, by_rounds, by_walking],
    wrong=[
        (keeping(lambda a, b, ahead, home: a in ahead), "from the inputs. Does each edge lead to an output"),
        (keeping(lambda a, b, ahead, home: b in home), "back from the outputs"),
        (keeping(lambda a, b, ahead, home: a in ahead or b in home), "`or`"),
        (keeping(lambda a, b, ahead, home: b in ahead), "leads to no output"),
        (keeping(lambda a, b, ahead, home: a in home and b in home), "back from the outputs"),
        (keeping(lambda a, b, ahead, home: True), "nothing was removed"),
        (undirected, "the arrows were ignored"),
        (lambda e, i, o: {p: w for p, w in e.items() if p[0] in i or p[1] in o}, "right at inputs and outputs"),
        (lambda e, i, o: {p: w for p, w in e.items() if p[0] in i}, "it is on a path"),
        (lambda e, i, o: {p: w for p, w in e.items() if p[1] in o}, "it is on a path"),
        (lambda e, i, o: by_rounds(e, i, o, 1), "dead ends were removed once"),
        (lambda e, i, o: by_rounds(e, i, o, 2), "leads to"),
        (one_pass, "on a path from an input"),
        (shortest, "on a path from an input"),
        (lambda e, i, o: by_walking(e, i, o, True), "on a path from an input"),
        (of_weight(bool), "weight 0"),
        (of_weight(lambda w: w >= 0), "negative weight"),
        (of_weight(lambda w: w > 0), "it is on a path"),
        (lambda e, i, o: right_paths(e, o, i), "exchanged"),
        (lambda e, i, o: right_paths(e, i[:1], o), "on a path from an input"),
        (in_place, "the given dictionary is as it was"),
        (complement, "not* on a path"),
        (joined, "every edge is one of the graph"),
        (lambda e, i, o: set(right_paths(e, i, o)), "a dictionary is returned"),
        (lambda e, i, o: dict.fromkeys(right_paths(e, i, o), 1.0), "copy the weights"),
        (lambda e, i, o: {(b, a): w for (a, b), w in right_paths(e, i, o).items()}, "every edge is one of the graph"),
        (lambda e, i, o: None, "None"),
    ],
)

# 1.4 adder


def wired(weights=((1, 1), (1, 1)), biases=(0, -1), out=((1, 0), (-2, 1)), b_out=(0, 0), at=lambda n, i, j: (i, j)):
    """weights[k] are those of neuron k from the two bits; out[k] what it sends to the two outputs."""

    def adder(n, i, j):
        W_in = torch.zeros(n, len(weights))
        for neuron, pair in enumerate(weights):
            for place, weight in zip(at(n, i, j), pair, strict=True):
                W_in[place % n, neuron] = weight
        given = {"W_in": W_in, "b_in": biases, "W_out": out, "b_out": b_out}
        return {name: torch.as_tensor(value, dtype=torch.float32) for name, value in given.items()}

    return adder


def as_lists(n, i, j):
    """Right: other strengths, neurons in another order, lists and integers."""
    W_in = [[4 * (k in (i, j)), 3 * (k in (i, j))] for k in range(n)]
    return {"b_out": [0, 0], "b_in": np.array([-4, 0]), "W_in": W_in, "W_out": [[-0.5, 0.25], [1 / 3, 0]]}


def listening(n, i, j):
    W = wired()(n, i, j)
    W["W_in"][(set(range(n)) - {i, j} or {i}).pop()] = 1
    return W


def for_the_first_two(n, i, j):
    return wired()(n, 0, 1)


def turned(name):
    def adder(n, i, j):
        W = wired()(n, i, j)
        return W | {name: W[name].T.contiguous()}

    return adder


ADDER = Answers(
    right=[
        wired(),
        as_lists,
        wired(((-1, -1), (1, 1)), (1, -1), ((-1, 0), (-1, 1)), (1, 0)),  # none of them, and both
        wired(((-1, -1),) * 2, (2, 1), ((1, -1), (-2, 1)), (0, 1)),  # none of them, and less than two
        wired(biases=(3, -1), b_out=(-3, 0)),  # a neuron that is never silent
        wired(((2, 2),) * 2, (0, -3), ((0.5, 0), (-2, 1))),
    ],
    wrong=[
        (wired(out=((0, 1), (1, -2))), "exchanged"),
        (wired(out=((1, 0), (-1, 1))), "at least one of the two is 1 (OR)"),
        (wired(out=((1, 0), (0, 1))), "the sum, 0, 1 or 2"),
        (wired(out=((-1, 0), (2, 1)), b_out=(1, 0)), "the two are the same (XNOR)"),
        (wired(biases=(0, 0), out=((1, 0), (-2, 1))), "minus the sum"),
        (wired(biases=(0, -2)), "the sum, 0, 1 or 2"),
        (wired(biases=(0, -1), out=((1, 0), (-2, -1))), "by hand"),
        (wired(out=((1, 0), (-2, 2))), "twice the AND"),
        (wired(out=((1, 1), (-2, -1))), "at least one of the two is 1 (OR)"),
        (wired(out=((1, 0), (-2, 0))), "always 0"),
        (wired(b_out=(1, 0)), "by hand"),
        (wired(((1, -1), (-1, 1)), (0, 0), ((1, 0), (1, 1))), "second and not the first"),
        (wired(((1, 0), (0, 1)), (0, 0), ((1, 1), (1, 0))), "the sum, 0, 1 or 2"),
        (wired(((1, -1), (-1, 1), (1, 1)), (0, 0, -1), ((1, 0), (1, 0), (0, 1))), "at most two neurons"),
        (wired(((1, 1),) * 3, (0, -1, -1), ((1, 0), (-2, 0), (0, 1))), "at most two neurons"),
        (listening, "only inputs i and j may matter"),
        (for_the_first_two, "not always 0 and 1"),
        (wired(at=lambda n, i, j: (i + 1, j + 1)), "only inputs i and j may matter"),
        (wired(at=lambda n, i, j: (i - 1, j - 1)), "only inputs i and j may matter"),
        (wired(at=lambda n, i, j: (i, i)), "input i alone"),
        (turned("W_in"), "transposed"),
        (turned("W_out"), "output 0"),
        (lambda *given: tuple(wired()(*given).values()), "a dictionary with"),
        (lambda *given: {k: v for k, v in wired()(*given).items() if k != "b_out"}, "a dictionary with"),
        (lambda *given: None, "a dictionary with"),
    ],
)

# 1.5 circuit_output


def deep(instead=lambda h, clean, pre, k: clean.mean(0), *, act=relu, flip=False, skip=None, end=lambda out: out):
    """Held neurons say `instead(h, clean, pre, k)`, made from this run's and the whole network's activations."""

    def circuit_output(layers, x, kept):
        h = clean = x
        for k, ((W, b), working) in enumerate(zip(layers[:-1], kept, strict=True)):
            pre = clean @ W + b
            h, clean = act(h @ W + b), act(pre)
            works = torch.zeros(h.shape[1], dtype=torch.bool)
            works[list(working)] = True
            if k != (len(layers) - 2 if skip == "last" else skip):
                h = torch.where(works ^ flip, h, instead(h, clean, pre, k))
        W, b = layers[-1]
        return end(h @ W + b)

    return circuit_output


def recorded(layers, x, kept):
    """Right: one run that records, in float64 numpy, and one that ablates."""
    layers = [(W.double().numpy(), b.double().numpy()) for W, b in layers]
    means, h = [], x.double().numpy()
    for W, b in layers[:-1]:
        h = np.maximum(h @ W + b, 0)
        means.append(h.mean(axis=0))
    h = x.double().numpy()
    for (W, b), working, mean in zip(layers[:-1], kept, means, strict=True):
        h = np.maximum(h @ W + b, 0)
        off = [k for k in range(len(mean)) if k not in working]
        h[:, off] = mean[off]
    return h @ layers[-1][0] + layers[-1][1]


def by_recursion(layers, x, kept):
    """Right: the whole network's activations of every layer are computed anew."""

    def whole(k):
        return x if k < 0 else relu(whole(k - 1) @ layers[k][0] + layers[k][1])

    def part(k):
        if k < 0:
            return x
        h = relu(part(k - 1) @ layers[k][0] + layers[k][1])
        mean = whole(k).mean(dim=0, keepdim=True)
        return torch.stack([h[:, n] if n in kept[k] else mean[:, n].expand(len(x)) for n in range(h.shape[1])], dim=1)

    return part(len(layers) - 2) @ layers[-1][0] + layers[-1][1]


def mean_input(layers, x, kept):
    h, usual = x, x.mean(0)
    for (W, b), working in zip(layers[:-1], kept, strict=True):
        h, usual = relu(h @ W + b), relu(usual @ W + b)
        frozen = usual.repeat(len(x), 1)
        frozen[:, working] = h[:, working]
        h = frozen
    return h @ layers[-1][0] + layers[-1][1]


def means_pass_on(layers, x, kept):
    """Wrong: the mean of a layer is sent through the next one, instead of the mean of what comes out."""
    h, usual = x, None
    for (W, b), working in zip(layers[:-1], kept, strict=True):
        h = relu(h @ W + b)
        usual = h.mean(0) if usual is None else relu(usual @ W + b)
        frozen = usual.repeat(len(x), 1)
        frozen[:, working] = h[:, working]
        h = frozen
    return h @ layers[-1][0] + layers[-1][1]


def late_in_the_middle(layers, x, kept):
    """Wrong: only the last hidden layer is held at the means of the whole network."""
    return deep(lambda h, clean, pre, k: (clean if k == len(kept) - 1 else h).mean(0))(layers, x, kept)


def weights_in_place(layers, x, kept):
    out = deep()(layers, x, kept)
    layers[0][0][:, 0] = 0
    return out


CIRCUIT_OUTPUT = Answers(
    right=[deep(), recorded, by_recursion],
    wrong=[
        (deep(lambda h, *_: h.mean(0)), "the means come from the run in which earlier neurons are held"),
        (deep(lambda *_: torch.zeros(())), "zero ablation"),
        (deep(flip=True), "exchanged"),
        (deep(lambda h, *_: h.mean(0), flip=True), "exchanged"),
        (deep(lambda h, clean, pre, k: clean), "nothing was held"),
        (deep(lambda h, clean, pre, k: h), "nothing was held"),
        (mean_input, "or of the inputs"),
        (means_pass_on, "sent through the next layer"),
        (deep(lambda h, clean, *_: clean.mean(1, keepdim=True)), "over neurons"),
        (deep(lambda h, clean, pre, k: pre.mean(0)), "before the ReLU"),
        (deep(lambda h, clean, pre, k: relu(pre.mean(0))), "which came after"),
        (deep(lambda h, clean, *_: clean.mean()), "for a whole layer"),
        (deep(lambda h, clean, *_: clean.median(0).values), "median"),
        (deep(lambda h, clean, *_: clean[0]), "the first sample"),
        (deep(skip="last"), "the last hidden layer"),
        (deep(skip=0), "the first hidden layer"),
        (deep(lambda h, clean, pre, k: clean.mean(0) if k == 0 else 0 * h), "record the means of all layers"),
        (deep(act=lambda pre: pre), "the ReLU is missing"),
        (deep(end=relu), "the last layer has none"),
        (lambda layers, x, kept: deep()(layers, x, [[] for _ in kept]), "all neurons were held"),
        (lambda layers, x, kept: deep()(layers, x, kept) - layers[-1][1], "bias is missing"),
        (lambda layers, x, kept: deep()(layers, x, kept).mean(0), "a row of outputs"),
        (late_in_the_middle, "record the means of all layers"),
        (weights_in_place, "the network is as it was"),
        (lambda *given: None, "None"),
    ],
)

# 1.6 two_jobs


def jobs(first=(0, 4, 7), second=(1, 2, 4), reads=(0, 1, 3, 4)):
    return {"first": set(first), "second": set(second), "reads": set(reads)}


TWO_JOBS = Answers(
    right=[
        jobs(),
        {"reads": [4, 3, 1, 0], "second": (4, 2, 1), "first": torch.tensor([0, 4, 7])},
        {
            "first": frozenset({0.0, 4.0, 7.0}),
            "second": np.array([1, 2, 4]),
            "reads": {np.int64(k) for k in (0, 1, 3, 4)},
        },
    ],
    wrong=[
        (jobs((1, 2, 4), (0, 4, 7)), "exchanged"),
        (jobs((0, 4, 7, 10), (1, 2, 4, 5)), "zero ablation"),
        (jobs((4, 6, 9), (5, 6, 9)), "largest weights"),
        (jobs((4, 6, 9), (5, 9, 4)), "never fires"),
        (jobs((0, 1, 2, 4, 7), (0, 1, 2, 4, 7)), "both outputs together"),
        (jobs((0, 7), (1, 2)), "the shared neuron counts"),
        (jobs((0, 7), (1, 2, 4)), "may have two jobs"),
        (jobs((0, 4, 7), (1, 2)), "may have two jobs"),
        (jobs((4,), (4,)), "only the shared neuron"),
        (jobs((), ()), "signed"),
        (jobs((1, 2, 3, 5, 6, 8, 9, 10, 11), (0, 3, 5, 6, 7, 8, 9, 10, 11)), "do *not* matter"),
        (jobs((1, 5, 8), (2, 3, 5)), "counted from 1"),
        (jobs((0, 4, 7, 9)), "never fires"),
        (jobs((0, 4, 7, 10)), "always on"),
        (jobs((0, 4, 7), (1, 2, 4, 5)), "always on"),
        (jobs((0, 4, 7), (1, 2, 4, 6)), "never fires"),
        (jobs((0, 4, 7, 8)), "less than 0.1"),
        (jobs((0, 4, 7), (1, 2, 4, 11)), "less than 0.1"),
        (jobs((0, 1, 4, 7)), "the other output only"),
        (jobs((0, 4)), "without neuron 7"),
        (jobs((0, 4, 7), (2, 4)), "without neuron 1"),
        (jobs((0, 4, 12)), "from 0 to 11"),
        (jobs(reads=(1, 4)), "the inputs of the first output"),
        (jobs(reads=(2, 5)), "that do not matter"),
        (jobs(reads=(1, 2, 4)), "numbers of neurons"),
        (jobs(reads=range(6)), "flipping input 2"),
        (jobs(reads=(0, 3)), "flipping input 1"),
        (jobs(reads=(1, 2, 4, 5)), "flipping input 0"),
        (jobs(reads=(1, 4, 5, 7)), "from 0 to 5"),
        (jobs() | {"first": None}, "a set of numbers"),
        (jobs() | {"first": ["0", "4", "7"]}, "a set of numbers"),
        (jobs() | {"first": {0.25, 4, 7}}, "a set of numbers"),
        ({"first": {0, 4, 7}, "second": {1, 2, 4}}, "a dictionary with"),
        ({0, 4, 7}, "a dictionary with"),
    ],
)

# 1.7 missed


def found(alone=("L1N3", "L2N3", "L2N5"), pairs=(("L1N0", "L1N4"), ("L1N0", "L2N7")), silent="L2N7"):
    return {"alone": set(alone), "pairs": set(pairs), "silent": silent}


MISSED = Answers(
    right=[
        found(),
        {"silent": " l2n7 ", "pairs": [["L2N7", "L1N0"], ["L1N4", "L1N0"]], "alone": ["L2N5", "L2N3", "L1N3"]},
        {
            "alone": np.array(["L2N3", "L2N5", "L1N3"]),
            "pairs": {("L1N4", "L1N0"), ("L1N0", "L2N7"), ("L2N7", "L1N0")},
            "silent": "l2n7",
        },
        {
            "alone": frozenset({"L1N3", "L2N3", "L2N5"}),
            "pairs": {frozenset({"L1N0", "L1N4"}), frozenset({"L1N0", "L2N7"})},
            "silent": {"L2N7"},
        },
    ],
    wrong=[
        (found(("L1N3", "L2N3")), "without L2N5"),
        (found(("L1N0", "L1N3", "L2N3", "L2N5")), "without L1N0, 0 of the 32"),
        (
            found(
                ("L1N0", "L1N1", "L1N2", "L1N4", "L1N5", "L1N6", "L1N7", "L2N0", "L2N1", "L2N2", "L2N4", "L2N6", "L2N7")
            ),
            "that can go alone",
        ),
        (found(("L2N5",)), "without L1N3"),
        (found(()), "without L1N3"),
        (found(("L1N3", "L2N3", "L2N8")), "has a name such as"),
        (found({3, 11, 13}), "has a name such as"),
        (found(pairs=(("L1N0", "L1N4"),)), "a pair is missing"),
        (found(pairs=(("L1N0", "L2N7"),)), "a pair is missing"),
        (found(pairs=()), "a pair is missing"),
        (found(pairs=(("L1N0", "L1N4"), ("L1N0", "L2N7"), ("L1N4", "L2N7"))), "without both L1N4 and L2N7"),
        (found(pairs=(("L1N4", "L2N7"),)), "without both L1N4 and L2N7"),
        (found(pairs=(("L1N0", "L1N4"), ("L1N0", "L2N7"), ("L1N0", "L2N5"))), "L2N5 is needed on its own"),
        (found(pairs=(("L1N2", "L1N3"),)), "L1N3 is needed on its own"),
        (found(pairs=(("L1N0", "L1N4", "L2N7"),)), "a set of pairs"),
        (found(pairs=("L1N0", "L1N4")), "a set of pairs"),
        (found(pairs=(("L1N0", "L1N0"), ("L1N0", "L1N4"), ("L1N0", "L2N7"))), "without both L1N0 all"),
        (found(silent="L2N5"), "fires on some"),
        (found(silent="L1N4"), "fires on some"),
        (found(silent="L1N7"), "in none of the pairs"),
        (found(silent="L2N1"), "in none of the pairs"),
        (found(silent="L2N4"), "in none of the pairs"),
        (found(silent=7), "has a name such as"),
        (found(silent=None), "has a name such as"),
        ({"alone": {"L1N3"}, "pairs": set()}, "a dictionary with"),
    ],
)

# 1.8 statements

TRUTH = dict(zip("abcdefghij", (False, False, True, True, False, True, False, False, False, True), strict=True))

STATEMENTS = Answers(
    right=[
        TRUTH,
        {name: str(value).lower() for name, value in TRUTH.items()},
        {name: np.bool_(value) for name, value in TRUTH.items()},
    ],
    wrong=[
        *(({**TRUTH, name: not value}, f"statement {name}") for name, value in TRUTH.items()),
        ({**TRUTH, "b": True}, "step in when it is gone"),
        ({**TRUTH, "e": True}, "knocked out of both"),
        ({**TRUTH, "h": True}, "suffices"),
        ({**TRUTH, "a": "maybe"}, "no such answer"),
        ({name: value for name, value in TRUTH.items() if name != "j"}, "one judgement for each"),
    ],
)

# 1.9 pruned


def in_chunks(score, nodes, enough):
    """Right: tries to remove halves, quarters and so on, and single nodes in the end."""
    kept, size = list(nodes), len(nodes) // 2
    while size:
        start = 0
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if score(set(rest)) >= enough:
                kept = rest
            else:
                start += size
        size //= 2
    return rounds()(score, kept, enough)


def while_it_rises(score, nodes, enough):
    kept, now = set(nodes), score(set(nodes))
    for node in nodes:
        if (new := score(kept - {node})) >= now:
            kept, now = kept - {node}, new
    return kept


def in_pairs(score, nodes, enough):
    kept = set(nodes)
    for pair in itertools.combinations(nodes, 2):
        if set(pair) <= kept and score(kept - set(pair)) >= enough:
            kept = kept - set(pair)
    return kept


def while_listing(score, nodes, enough):
    for node in nodes:
        if score([n for n in nodes if n != node]) >= enough:
            nodes.remove(node)  # the loop now skips the next one
    return nodes


def rounds(enough_of=lambda new, enough: new >= enough, *, order=list, most=10**6):
    """Goes through the nodes again and again, until nothing goes or `most` rounds are over."""

    def pruned(score, nodes, enough):
        kept = set(nodes)
        for _ in range(most):
            before = len(kept)
            for node in order(nodes):
                if node in kept and enough_of(score(kept - {node}), enough):
                    kept = kept - {node}
            if len(kept) == before:
                break
        return kept

    return pruned


def best_first(score, nodes, enough):
    """Right: every time the node goes without which the score is highest."""
    kept = list(nodes)
    while kept:
        value, out = max((score([n for n in kept if n != node]), node) for node in kept)
        if value < enough:
            break
        kept.remove(out)
    return kept


def restarting(score, nodes, enough):
    """Right: after each removal it starts again from the first."""
    for node in nodes:
        rest = [n for n in nodes if n != node]
        if score(frozenset(rest)) >= enough:
            return restarting(score, rest, enough)
    return tuple(nodes)


def shuffled(nodes):
    return random.Random(len(nodes)).sample(nodes, len(nodes))


def grown(score, nodes, enough):
    kept = set()
    while score(kept) < enough:
        kept = kept | {max((n for n in nodes if n not in kept), key=lambda n: score(kept | {n}))}
    return kept


def grown_and_pruned(score, nodes, enough):
    """Right: grows a set that is enough, if that works, then prunes it."""
    kept, ranked = set(), sorted(nodes, key=lambda n: -score({n}))
    for node in ranked:
        if score(kept) >= enough:
            break
        kept = kept | {node}
    return rounds()(score, list(kept), enough)


def at_once(score, nodes, enough):
    return {n for n in nodes if score(set(nodes) - {n}) < enough}


def by_drop(score, nodes, enough):
    whole = score(set(nodes))
    return {n for n in nodes if whole - score(set(nodes) - {n}) > 0}


def first_refusal(score, nodes, enough):
    kept = set(nodes)
    for node in nodes:
        if score(kept - {node}) < enough:
            break
        kept = kept - {node}
    return kept


def one_too_many(score, nodes, enough):
    kept = list(nodes)
    while score(kept) >= enough and kept:
        kept = kept[1:]
    return kept


def all_subsets(score, nodes, enough):
    for size in range(len(nodes) + 1):
        for kept in itertools.combinations(nodes, size):
            if score(set(kept)) >= enough:
                return set(kept)
    return set(nodes)


def all_values(score, nodes, enough):
    sizes = itertools.product([0, 1], repeat=len(nodes))
    subsets = [{n for n, use in zip(nodes, chosen, strict=True) if use} for chosen in sizes]
    return min((s for s in subsets if score(s) >= enough), key=len)


PRUNED = Answers(
    right=[
        rounds(),
        rounds(order=reversed),
        rounds(order=shuffled),
        best_first,
        restarting,
        grown_and_pruned,
        in_chunks,
        lambda score, nodes, enough: dict.fromkeys(rounds()(score, nodes, enough), True),
    ],
    wrong=[
        (at_once, "two may do the same job"),
        (rounds(most=1), "go on until no single one can go"),
        (rounds(order=reversed, most=1), "go on until no single one can go"),
        (rounds(lambda new, enough: new > enough), ">="),
        (first_refusal, "no kept node can go"),
        (one_too_many, "one too many"),
        (by_drop, "does not mean that it falls below"),
        (lambda score, nodes, enough: set(nodes), "nothing was removed"),
        (lambda score, nodes, enough: set(), "score at least"),
        (lambda score, nodes, enough: set(nodes) - rounds()(score, nodes, enough), "that were removed"),
        (lambda score, nodes, enough: {n for n in nodes if score({n}) >= enough}, "score at least"),
        (lambda score, nodes, enough: {n for n in nodes if score({n}) > 0}, "no kept node can go"),
        (grown, "no kept node can go"),
        (while_it_rises, "no kept node can go"),
        (in_pairs, "no kept node can go"),
        (while_listing, "no kept node can go"),
        (lambda score, nodes, enough: rounds()(score, nodes, enough * score(set(nodes))), "no kept node can go"),
        (lambda score, nodes, enough: rounds()(score, nodes, 0.9 * score(set(nodes))), "no kept node can go"),
        (rounds(lambda new, enough: new <= enough), "score at least"),
        (all_subsets, "more than 3n²"),
        (all_values, "more than 3n²"),
        (lambda score, nodes, enough: len(rounds()(score, nodes, enough)), "a set of names"),
        (lambda score, nodes, enough: [n in rounds()(score, nodes, enough) for n in nodes], "a set of names"),
        (lambda score, nodes, enough: (kept := rounds()(score, nodes, enough), score(kept)), "nothing else"),
        (lambda score, nodes, enough: score(range(len(nodes))), "no node of the network"),
        (lambda score, nodes, enough: None, "None"),
    ],
)

BANK = {
    "mean_ablated": MEAN_ABLATED,
    "precision_recall": PRECISION_RECALL,
    "on_paths": ON_PATHS,
    "adder": ADDER,
    "circuit_output": CIRCUIT_OUTPUT,
    "two_jobs": TWO_JOBS,
    "missed": MISSED,
    "statements": STATEMENTS,
    "pruned": PRUNED,
}
