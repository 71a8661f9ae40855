"""Small ReLU networks whose every neuron has a name: chapter 1's specimens.

Inputs are `x0`, `x1`, ..., hidden neurons `L1N0`, ... by layer, outputs `y0`, ...; a circuit names its nodes so, and
`knocked_out` runs the network with all other neurons silenced.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor


@dataclass
class Network:
    """Layers x W + b with a ReLU between them, none after the last. `weights[i]` is [d_in, d_out].

    >>> network = Network.random([3, 5, 2])
    >>> network(torch.zeros(7, 3)).shape, network.hidden[:2], network.outputs
    (torch.Size([7, 2]), ['L1N0', 'L1N1'], ['y0', 'y1'])
    """

    weights: list[Float[Tensor, "_ _"]]
    biases: list[Float[Tensor, "_"]]

    @classmethod
    def random(cls, sizes: Sequence[int], generator: Generator | None = None) -> "Network":
        """Random weights of variance 2 / d_in; zero biases."""
        pairs = list(itertools.pairwise(sizes))
        weights = [torch.randn(a, b, generator=generator) * (2 / a) ** 0.5 for a, b in pairs]
        return cls(weights, [torch.zeros(b) for _, b in pairs])

    @property
    def inputs(self) -> list[str]:
        return [f"x{i}" for i in range(self.weights[0].shape[0])]

    @property
    def hidden(self) -> list[str]:
        return [f"L{layer}N{i}" for layer, W in enumerate(self.weights[:-1], start=1) for i in range(W.shape[1])]

    @property
    def outputs(self) -> list[str]:
        return [f"y{i}" for i in range(self.weights[-1].shape[1])]

    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        return self.activations(x)[-1]

    def activations(
        self, x: Float[Tensor, "batch d_in"], change: Callable[[int, Tensor], Tensor] = lambda layer, h: h
    ) -> list[Float[Tensor, "batch _"]]:
        """The input, each hidden layer after its ReLU, the output; `change(layer, h)` may replace a hidden layer."""
        found = [x]
        for layer, (W, b) in enumerate(zip(self.weights, self.biases, strict=True), start=1):
            x = x @ W + b
            if layer < len(self.weights):
                x = change(layer, torch.relu(x))
            found.append(x)
        return found


def knocked_out(
    network: Network,
    x: Float[Tensor, "batch d_in"],
    kept: Iterable[str],
    instead: Sequence[Float[Tensor, "..."]] | None = None,
) -> Float[Tensor, "batch d_out"]:
    """The network's output when only the hidden neurons `kept` work.

    All others have the mean that they have over x in the whole network; or what `instead` says, for each hidden layer
    something that fits [batch, d]: zeros, or another input's activations. Names that are not hidden neurons (the
    inputs and outputs of a circuit) are passed over. Raises ValueError for a name that the network does not have.
    """
    kept, hidden = set(kept), network.hidden
    for name in kept.difference(hidden, network.inputs, network.outputs):
        raise ValueError(f"the network has no {name!r}: its hidden neurons are {', '.join(hidden[:4])}, ...")
    if instead is None:
        instead = [h.mean(dim=0) for h in network.activations(x)[1:-1]]
    sizes = [W.shape[1] for W in network.weights[:-1]]
    working = torch.tensor([name in kept for name in hidden], dtype=torch.bool).split(sizes)
    return network.activations(x, lambda layer, h: torch.where(working[layer - 1], h, instead[layer - 1]))[-1]


def explained(y_hat: Float[Tensor, "batch d_out"], y: Float[Tensor, "batch d_out"]) -> float:
    """The share of y's variance that y_hat explains: 1 is perfect, 0 no better than the mean, below 0 worse.

    Raises ValueError if the shapes differ: they would be broadcast, silently.
    """
    if y_hat.shape != y.shape:
        raise ValueError(f"outputs {list(y_hat.shape)} and targets {list(y.shape)} must have one shape, [batch, d_out]")
    return 1 - ((y_hat - y).square().sum() / (y - y.mean(dim=0)).square().sum()).item()


def ablated_score(
    network: Network,
    x: Float[Tensor, "batch d_in"],
    y: Float[Tensor, "batch d_out"],
    outputs: Sequence[int] | None = None,
    instead: Sequence[Tensor] | None = None,
) -> Callable[[frozenset[str]], float]:
    """How well the network does on this data when only some neurons work: a `Score` for chapter 1's three questions.

    `outputs` are those that count, all by default; `instead` is what silenced neurons say (`knocked_out`), by default
    the means that they have in the network as it is now.
    """
    chosen = list(range(y.shape[1])) if outputs is None else list(outputs)
    if instead is None:
        instead = [h.mean(dim=0) for h in network.activations(x)[1:-1]]
    return lambda kept: explained(knocked_out(network, x, kept, instead)[:, chosen], y[:, chosen])


def train(
    network: Network,
    x: Float[Tensor, "batch d_in"],
    y: Float[Tensor, "batch d_out"],
    *,
    steps: int = 2000,
    lr: float = 0.01,
    l1: float = 0.0,
) -> Network:
    """Trains in place on the whole data, with Adam: mean squared error, plus l1 times the sum of |weights|.

    The learning rate falls to zero in a straight line. Returns the network. Raises ValueError if y has another shape
    than the network's outputs.
    """
    if y.shape != (len(x), len(network.outputs)):
        raise ValueError(f"y is {list(y.shape)}, but must be [batch, d_out]: {[len(x), len(network.outputs)]}")
    parameters = [p.requires_grad_() for p in (*network.weights, *network.biases)]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            loss = (network(x) - y).square().mean()
            if l1:
                loss = loss + l1 * torch.stack([W.abs().sum() for W in network.weights]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for p in parameters:
        p.requires_grad_(False)
    return network


def all_inputs(n: int) -> Float[Tensor, "patterns n"]:
    """Every pattern of n zeros and ones, 2^n rows."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).float()
