"""Circuits: a subgraph of a network's computation that is claimed to do a job, and what the claim has to pass.

A circuit is a pair (N, E): nodes, which are neurons, heads or whole layers by name, and weighted edges between them
(Olah et al. 2020). Three questions are put to its nodes by a function `score(kept)`, which says how well the network
does when only the nodes `kept` work as they should and all others are knocked out (Wang et al. 2023, section 4):

    faithfulness   does the circuit alone do what the network does?
    completeness   does it still, when the same parts are knocked out of both?
    minimality     is every node of it needed, in some company?
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from interp_edu.tiny_networks import Network

Nodes = frozenset[str]
Edge = tuple[str, str, str]  # sender, receiver, and which of the receiver's inputs: "q", "k", "v", "mlp", or ""
Score = Callable[[Nodes], float]


@dataclass(frozen=True)
class Circuit:
    """Nodes with their roles, in the order of computation, and edges with their weights.

    >>> circuit = Circuit({"L0H1": "previous-token head", "L1H0": "induction head"}, {("L0H1", "L1H0", "k"): 1.0})
    >>> circuit.names, circuit.receivers("L0H1")
    (frozenset({'L0H1', 'L1H0'}), ['L1H0'])

    Raises ValueError for an edge to or from what is not a node, or against the order of the nodes.
    """

    nodes: Mapping[str, str]
    edges: Mapping[Edge, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = {name: i for i, name in enumerate(["embed", *self.nodes, "logits"])}  # the ends are no nodes
        for sender, receiver, side in self.edges:
            for name in {sender, receiver} - set(order):
                raise ValueError(f"an edge joins {sender} and {receiver}, but {name} is not a node: {list(self.nodes)}")
            if order[sender] >= order[receiver]:
                raise ValueError(
                    f"the edge {sender} to {receiver} {side} goes backwards: nodes come in computing order"
                )

    @property
    def names(self) -> Nodes:
        return frozenset(self.nodes)

    def receivers(self, sender: str) -> list[str]:
        """Who reads what a node writes, each once, in the order of the edges."""
        return list(dict.fromkeys(to for start, to, _ in self.edges if start == sender))

    def save(self, path: str | Path) -> None:
        """Writes the circuit as JSON: {"nodes": {name: role}, "edges": [[sender, receiver, input, weight]]}."""
        edges = [[*edge, weight] for edge, weight in self.edges.items()]
        Path(path).write_text(json.dumps({"nodes": dict(self.nodes), "edges": edges}, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Reads what `save` wrote. Raises ValueError, with the file's name, for anything else."""
        try:
            found = json.loads(Path(path).read_text("utf-8"))
            edges = {(str(a), str(b), str(side)): float(weight) for a, b, side, weight in found["edges"]}
            return cls({str(name): str(role) for name, role in found["nodes"].items()}, edges)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} does not hold a circuit: {error}") from error


# From a network to a circuit, and to coarser ones ------------------------------------------------------


def from_network(
    network: Network,
    x: Float[Tensor, "batch d_in"],
    *,
    threshold: float,
    kept: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
) -> Circuit:
    """A network's graph at the granularity of neurons, without what is weak and what leads nowhere.

    An edge's weight is the network's weight times the standard deviation of its sender over x: by how much the
    receiver's input varies because of it. (A large weight on what never changes decides nothing.) Edges below
    `threshold` in size are dropped, then neurons that are not `kept`, then all that is on no path from an input to
    one of the `outputs`. Raises ValueError for a name that the network does not have.
    """
    wanted = set(network.outputs if outputs is None else outputs)
    alive = set(network.hidden if kept is None else kept) | set(network.inputs) | wanted
    names = [network.inputs, *_by_layer(network), network.outputs]
    for name in alive - {name for layer in names for name in layer}:
        raise ValueError(f"the network has no {name!r}: it has {', '.join(network.hidden[:3])}, ...")
    edges: dict[Edge, float] = {}
    for senders, receivers, W, h in zip(names, names[1:], network.weights, network.activations(x), strict=False):
        strength = W * h.std(dim=0, correction=0)[:, None]
        for i, j in (strength.abs() >= threshold).nonzero().tolist():
            if senders[i] in alive and receivers[j] in alive:
                edges[senders[i], receivers[j], ""] = strength[i, j].item()
    on_path = _reached(edges, network.inputs) & _reached({(b, a, s): w for (a, b, s), w in edges.items()}, wanted)
    nodes = {name: "" for layer in names for name in layer if name in on_path}
    return Circuit(nodes, {e: w for e, w in edges.items() if {e[0], e[1]} <= on_path})


def _by_layer(network: Network) -> list[list[str]]:
    return [[n for n in network.hidden if n.startswith(f"L{i}N")] for i in range(1, len(network.weights))]


def _reached(edges: Iterable[Edge], start: Iterable[str]) -> set[str]:
    """The nodes that can be reached from some nodes, these among them."""
    found, frontier = set(start), set(start)
    while frontier:
        frontier = {b for a, b, _ in edges if a in frontier} - found
        found |= frontier
    return found


GRAIN = re.compile(r"(L\d+)[HN]\d+|([xy])\d+")


def coarsen(circuit: Circuit) -> Circuit:
    """The same circuit with whole layers as nodes: neurons (`L1N3`) and heads (`L0H1`) become `L1` and `L0`.

    Inputs (`x3`) and outputs (`y0`) are merged too; other names stay. The weight between two layers is the sum of the
    sizes of the weights that it stands for, by input; what joins two nodes of one layer is dropped.
    """

    def layer(name: str) -> str:
        found = GRAIN.fullmatch(name)
        return name if found is None else found[1] or found[2]

    roles: dict[str, list[str]] = {}
    for name, role in circuit.nodes.items():
        roles.setdefault(layer(name), []).append(role)
    edges: dict[Edge, float] = {}
    for (a, b, side), weight in circuit.edges.items():
        if layer(a) != layer(b):
            edge = (layer(a), layer(b), side)
            edges[edge] = edges.get(edge, 0.0) + abs(weight)
    return Circuit({name: ", ".join(dict.fromkeys(filter(None, found))) for name, found in roles.items()}, edges)


def layout(circuit: Circuit) -> dict[str, tuple[float, float]]:
    """A place (x, y) for each node, for `plot.circuit`: layers from left to right, few crossings.

    A node stands one layer after the last of its senders. Within a layer, nodes are ordered by the mean place of their
    neighbours, in a few sweeps forwards and backwards (Sugiyama et al. 1981).
    """
    ends = {name for edge in circuit.edges for name in edge[:2]} - set(circuit.nodes)
    names = [*sorted(ends & {"embed"}), *circuit.nodes, *sorted(ends & {"logits"})]
    depth: dict[str, int] = {}
    for name in names:
        depth[name] = 1 + max((depth[a] for a, b, _ in circuit.edges if b == name), default=-1)
    last = max(depth.values(), default=0)
    for name in names:  # an output without senders still stands at the end
        if re.fullmatch(r"y\d*|logits", name):
            depth[name] = last
    layers = [[name for name in names if depth[name] == i] for i in sorted(set(depth.values()))]
    place = {name: i - (len(layer) - 1) / 2 for layer in layers for i, name in enumerate(layer)}
    near: dict[str, list[str]] = {name: [] for name in names}
    for a, b, _ in circuit.edges:
        near[a].append(b)
        near[b].append(a)
    for sweep in range(8):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            if depth[layer[0]] == 0 and layer[0].startswith("x"):
                continue  # inputs keep their order, which readers know
            layer.sort(key=lambda name: sum(place[n] for n in near[name]) / len(near[name]) if near[name] else 0.0)
            place |= {name: i - (len(layer) - 1) / 2 for i, name in enumerate(layer)}
    return {name: (2.2 * depth[name], -place[name]) for name in names}


def describe(circuit: Circuit, most: int = 12) -> str:
    """The circuit in words, for those who do not see its drawing: its size, and its strongest edges."""
    strongest = sorted(circuit.edges.items(), key=lambda item: -round(abs(item[1]), 2))  # so as they are told
    told = [f"{a} to {b}{f' ({side})' if side else ''} {weight:+.2f}" for (a, b, side), weight in strongest[:most]]
    rest = f", and {len(strongest) - most} weaker ones" if len(strongest) > most else ""
    edges = f": {', '.join(told)}{rest}" if told else ""
    return f"A graph of {len(circuit.nodes)} nodes ({', '.join(circuit.nodes)}) and {len(strongest)} edges{edges}."


# How a claim is judged -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How two sets agree: precision is the share of what was found that is true, recall the share of truth found."""

    precision: float
    recall: float

    @classmethod
    def of(cls, found: Iterable[object], true: Iterable[object]) -> "Agreement":
        """Nothing found has precision 1, nothing to be found recall 1."""
        found, true = set(found), set(true)
        both = len(found & true)
        return cls(both / len(found) if found else 1.0, both / len(true) if true else 1.0)


def agreement(found: Circuit, true: Circuit) -> dict[str, Agreement]:
    """Agreement of nodes and of edges; roles and weights do not count."""
    return {"nodes": Agreement.of(found.nodes, true.nodes), "edges": Agreement.of(found.edges, true.edges)}


def faithfulness(score: Score, circuit: Iterable[str], network: Iterable[str]) -> float:
    """The circuit's score as a share of the whole network's."""
    return score(frozenset(circuit)) / score(frozenset(network))


def completeness(
    score: Score, circuit: Iterable[str], network: Iterable[str], knocked_out: Iterable[Iterable[str]]
) -> list[tuple[float, float]]:
    """For each set K: the scores of circuit and network, both without K. A complete circuit has them equal.

    A backup that is not in the circuit shows when what it backs up is knocked out of both. Raises ValueError if the
    circuit or a set names what is not in the network: it would be removed from one of the two only.
    """
    circuit, network = frozenset(circuit), frozenset(network)
    sets = [frozenset(k) for k in knocked_out]
    for name in frozenset.union(circuit, *sets) - network:
        raise ValueError(f"{name!r} is not a node of the network, such as {min(network)!r}")
    return [(score(circuit - k), score(network - k)) for k in sets]


def minimality(score: Score, circuit: Iterable[str], company: Iterable[Iterable[str]] = ((),)) -> dict[str, float]:
    """For each node, by how much its removal changes the circuit's score at most, over sets that are removed as well.

    A node for which this stays near zero is not needed; with the empty company alone, nor is one of two that each do.
    """
    circuit = frozenset(circuit)
    sets = [frozenset(k) for k in company]
    return {
        node: max(abs(score(circuit - k - {node}) - score(circuit - (k - {node}))) for k in sets)
        for node in sorted(circuit)
    }


# Pruning ---------------------------------------------------------------------------------------------


def elimination(score: Score, network: Iterable[str]) -> list[tuple[str, float]]:
    """Removes one node after the other, each time the one without which the score is highest.

    Returns the nodes in the order of their removal, each with the score after it. Greedy: the sets on the way need not
    be the best of their size. Of equal ones the first by name goes first.
    """
    left, found = frozenset(network), []
    while left:
        node = max(sorted(left), key=lambda name: score(left - {name}))
        left -= {node}
        found.append((node, float(score(left))))
    return found


def prune(score: Score, network: Iterable[str], keep: float = 0.95) -> Nodes:
    """The smallest set on the greedy way whose score is at least the share `keep` of the whole network's.

    Raises ValueError if the whole scores zero or less: there is nothing to keep a share of.
    """
    left = small = frozenset(network)
    if (whole := score(left)) <= 0:
        raise ValueError(f"the whole network scores {whole:.3g}: pruning keeps a share of a score above zero")
    least = keep * whole
    for node, value in elimination(score, left):
        left -= {node}
        if value >= least:
            small = left
    return small
