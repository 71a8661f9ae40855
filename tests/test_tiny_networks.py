"""Small networks: a forward pass by hand, knocking out against torch's own layers, and training."""

import inspect

import pytest
import torch
from torch import nn

from interp_edu.tiny_networks import Network, ablated_score, all_inputs, explained, knocked_out, train


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(3)
    network = Network.random([4, 6, 5, 2], generator)
    network.biases = [torch.randn(b.shape, generator=generator) for b in network.biases]
    return network


def torch_layers(network):
    layers = []
    for W, b in zip(network.weights, network.biases, strict=True):
        layer = nn.Linear(*W.shape)
        layer.weight.data, layer.bias.data = W.T.clone(), b.clone()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_forward_equals_torch(network):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network(x), torch_layers(network)(x), atol=1e-6)
    x_in, h1, h2, y = network.activations(x)
    assert torch.equal(x_in, x)
    assert torch.allclose(h2, torch_layers(network)[:4](x), atol=1e-6)
    assert [h1.shape, h2.shape, y.shape] == [(9, 6), (9, 5), (9, 2)]


def test_names(network):
    assert network.inputs == ["x0", "x1", "x2", "x3"]
    assert network.hidden == [*(f"L1N{i}" for i in range(6)), *(f"L2N{i}" for i in range(5))]
    assert network.outputs == ["y0", "y1"]


def by_hand(network, x, kept, instead):
    """The same with loops over neurons: what is knocked out says `instead[layer][neuron]`."""
    for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True), start=1):
        x = x @ W + b
        if layer < len(network.weights):
            x = x.relu()
            for i in range(x.shape[1]):
                if f"L{layer}N{i}" not in kept:
                    x[:, i] = instead[layer - 1][i]
    return x


@pytest.mark.parametrize("kept", [(), ("L1N0", "L2N4"), ("L1N0", "L1N1", "L1N2", "L2N3", "x0", "y1")])
def test_knocked_out_by_hand(network, kept):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    model = torch_layers(network)
    means = [model[:2](x).mean(dim=0), model[:4](x).mean(dim=0)]  # of the whole network, not of the ablated one
    assert torch.allclose(knocked_out(network, x, kept), by_hand(network, x, kept, means), atol=1e-6)
    zeros = [torch.zeros(6), torch.zeros(5)]
    assert torch.allclose(knocked_out(network, x, kept, zeros), by_hand(network, x, kept, zeros), atol=1e-6)


def test_all_kept_is_the_network_and_weights_stay(network):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    before = [W.clone() for W in network.weights]
    assert torch.equal(knocked_out(network, x, network.hidden), network(x))
    assert torch.allclose(knocked_out(network, x, ()).std(dim=0), torch.zeros(2), atol=1e-6)  # says the same always
    assert all(torch.equal(a, b) for a, b in zip(before, network.weights, strict=True))


def test_resampled_activations_may_differ_by_sample(network):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    other = x.flip(0)
    instead = network.activations(other)[1:-1]
    assert torch.allclose(knocked_out(network, x, (), instead), network(other), atol=1e-6)


def test_unknown_names_are_refused(network):
    with pytest.raises(ValueError, match="no 'L3N0'"):
        knocked_out(network, torch.zeros(2, 4), ["L3N0"])


def test_explained_by_hand():
    y = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert explained(y, y) == 1.0
    assert explained(y.mean().expand(4, 1), y) == pytest.approx(0.0)
    assert explained(torch.tensor([[0.0], [1.0], [2.0], [2.0]]), y) == pytest.approx(1 - 1 / 5)
    assert explained(-y, y) < 0


def test_shapes_that_would_be_broadcast_are_refused(network):
    x = torch.zeros(5, 4)
    with pytest.raises(ValueError, match=r"outputs \[5, 2\] and targets \[5\] must have one shape"):
        inspect.unwrap(explained)(network(x), torch.zeros(5))  # as it runs outside of these tests, without shape checks
    with pytest.raises(ValueError, match=r"y is \[5, 1\], but must be \[batch, d_out\]: \[5, 2\]"):
        train(network, x, torch.zeros(5, 1))


def test_a_score_keeps_the_means_of_the_network_it_was_made_for(network):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    y = network(x)
    score, first = ablated_score(network, x, y), frozenset(["L1N0", "L2N1"])
    means = [h.mean(dim=0) for h in network.activations(x)[1:-1]]
    assert score(first) == pytest.approx(explained(by_hand(network, x, first, means), y), abs=1e-5)


def test_score_counts_the_outputs_that_are_chosen(network):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    y = network(x)
    everything = frozenset(network.hidden)
    assert ablated_score(network, x, y)(everything) == pytest.approx(1.0)
    wrong = torch.cat([y[:, :1], torch.randn(50, 1, generator=torch.Generator().manual_seed(1))], dim=1)
    assert ablated_score(network, x, wrong, [0])(everything) == pytest.approx(1.0)
    assert ablated_score(network, x, wrong, [1])(everything) < 0.9
    assert ablated_score(network, x, y)(frozenset()) == pytest.approx(explained(knocked_out(network, x, ()), y))


def test_training_learns_and_the_penalty_thins_out():
    x = all_inputs(4)
    y = (x[:, :1] != x[:, 1:2]).float()
    plain, thin = (
        train(Network.random([4, 12, 1], torch.Generator().manual_seed(1)), x, y, steps=800, l1=l1)
        for l1 in (0.0, 1e-3)
    )
    assert explained(plain(x), y) > 0.95
    assert explained(thin(x), y) > 0.9
    assert sum((W.abs() < 1e-2).sum() for W in thin.weights) > 2 * sum((W.abs() < 1e-2).sum() for W in plain.weights)
    assert not any(p.requires_grad for p in (*thin.weights, *thin.biases))


def test_training_is_the_same_for_the_same_seed():
    x, y = all_inputs(3), all_inputs(3)[:, :1]
    a, b = (train(Network.random([3, 4, 1], torch.Generator().manual_seed(5)), x, y, steps=20) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.weights, b.weights, strict=True))


def test_all_inputs():
    x = all_inputs(3)
    assert x.shape == (8, 3)
    assert len({tuple(row) for row in x.tolist()}) == 8
    assert set(x.flatten().tolist()) == {0.0, 1.0}
