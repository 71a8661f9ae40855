"""Circuits: a subgraph of a network's computation that is claimed to do a job, and what the claim has to pass.

A circuit is a pair (N, E): nodes, which are neurons, heads or whole layers by name, and weighted edges between them
(Olah et al. 2020). Three questions are put to its nodes by a function `score(kept)`, which says how well the network
does when only the nodes `kept` work as they should and all others are knocked out (Wang et al. 2023, section 4):

    faithfulness   does the circuit alone do what the network does?
    completeness   does it still, when the same parts are knocked out of both?
    minimality     is every node of it needed, in some company?
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
