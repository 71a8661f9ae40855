"""Checks of chapter 2's exercises. Each stands on its own: hand-worked cases, statistics, autograd."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from interp_edu.checks.core import Judge, exercise

COS72 = math.cos(math.radians(72))
HAND_WORKED = "hand-worked case"


def _shape_of(name: str) -> Tensor:
    """Hand-made geometries, W [1, 2, features]."""
    angles = {"pentagon": [0, 72, 144, 216, 288], "antipodal pair": [0, 180], "orthogonal": [0, 90]}[name]
    radians = torch.deg2rad(torch.tensor(angles, dtype=torch.float32))
    return torch.stack([radians.cos(), radians.sin()])[None]


def _random_weights(judge: Judge) -> Tensor:
    """W [3, 4, 7] with columns of very different lengths."""
    return judge.randn(3, 4, 7) * judge.rand(3, 1, 7, low=0.3, high=2.0)


def _independent(judge: Judge, on: Tensor, x: Tensor) -> None:
    """Checks that neither other samples nor other features tell anything. `on` and `x` are [samples, features]."""
    N, half = len(on), len(on) // 2
    centred = torch.where(on > 0, x - 0.5, 0.0)  # a size, 0 for those that are absent
    pairs = {
        "a sample and the next": (x[1:], x[:-1]),
        "the first and the second half of the batch": (x[:half], x[half : 2 * half]),
        "which features are active and the sizes of others": (on, centred),
        "sizes of different features": (centred, centred),
    }
    for name, (a, b) in pairs.items():
        a, b = ((t - t.mean(0)) / t.std(0).clamp_min(1e-9) for t in (a, b))
        r = (a.T @ b / N).abs()
        worst = float(r.fill_diagonal_(0).max() if "others" in name or "different" in name else r.max())
        judge.that(
            worst < 7.5 / math.sqrt(half),
            "samples, features and sizes are independent",
            seen=f"a correlation of {worst:.2f} between {name}",
            likely="numbers that were drawn once are used twice",
        )


@exercise("The toy model")
def sample_features(fn: Any, judge: Judge) -> None:
    N, prob = 20_000, judge.rand(2, 6, low=0.2, high=0.6)
    x = judge.tensor(judge.call(fn, N, prob), (N, 2, 6))
    active = (x != 0).double()
    density = active.mean(dim=0)
    judge.that(((x >= 0) & (x <= 1)).all(), "values lie between 0 and 1", seen=f"{x.min():.3g} to {x.max():.3g}")
    judge.that(
        (density < 1).any(),
        "most features are absent from a sample",
        seen="all are always active",
        likely="the mask is missing",
    )
    always_same = ((density == 0) | (density == 1)).all()
    judge.that(
        not always_same,
        "which features are active differs from sample to sample",
        seen="every sample has the same active features",
        likely="one mask shared by all samples: draw a number for each sample",
    )
    likely = "a feature is active with probability p; S = 1 - p is the probability that it is absent"
    if not bool(((density - (1 - prob)).abs() < 0.05).all()):
        likely = "compare a uniform number with p, for each entry of its own"
    noise = 6 * (prob * (1 - prob) / N).sqrt()
    worst = (density - prob).abs().argmax()
    judge.that(
        ((density - prob).abs() < noise).all(),
        "a feature is active with its own probability",
        seen=f"active in {density.flatten()[worst]:.3f} of the samples",
        expected=f"{prob.flatten()[worst]:.3f}",
        likely=likely,
    )
    mean = x.sum(dim=0) / active.sum(dim=0)
    spread = (((x - mean) ** 2 * active).sum(dim=0) / active.sum(dim=0)).sqrt()
    judge.that(
        not ((x == 0) | (x == 1)).all(),
        "an active feature has a magnitude",
        seen="only zeros and ones",
        likely="this is the mask: multiply it by magnitudes that are uniform in (0, 1)",
    )
    judge.that(
        (spread > 0.01).all(),
        "magnitudes differ from sample to sample",
        seen="a feature has the same magnitude whenever it is active",
        likely="one magnitude shared by all samples: draw one for each sample",
    )
    truncated = bool(((mean - prob / 2).abs() < 0.03).all()) or bool(((mean - (1 + (1 - prob)) / 2).abs() < 0.03).all())
    judge.that(
        ((mean - 0.5).abs() < 6 * 0.29 / (N * prob).sqrt()).all() and ((spread - 12**-0.5).abs() < 0.015).all(),
        "given that a feature is active, its magnitude is uniform between 0 and 1",
        seen=f"mean magnitude {mean.flatten()[worst]:.3f}, standard deviation {spread.flatten()[worst]:.3f}",
        expected="mean 0.5, standard deviation 0.289",
        likely="one draw decides both, so active magnitudes keep below p: divide by p, or draw twice"
        if truncated
        else "",
    )
    flat, on = x.flatten(1), active.flatten(1)
    threshold = 7 / math.sqrt(N)
    mask_correlation = torch.corrcoef(on.T).fill_diagonal_(0).abs().max()
    judge.that(
        mask_correlation < threshold,
        "features are active independently of each other",
        seen=f"a correlation of {mask_correlation:.2f} between two of them",
        likely="one mask shared by features or instances: draw a number for each entry",
    )
    for i in range(flat.shape[1]):
        for j in range(i):
            both = (on[:, i] * on[:, j]).bool()
            r = torch.corrcoef(torch.stack([flat[both, i], flat[both, j]]))[0, 1].abs()
            judge.that(
                r < 7 / math.sqrt(int(both.sum())),
                "magnitudes of different features are independent",
                seen=f"a correlation of {r:.2f} between two of them when both are active",
                likely="one magnitude shared by features or instances: draw one for each entry",
            )
    quartiles = torch.quantile(x[x > 0][:100_000], torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    judge.that(
        (quartiles - torch.tensor([0.25, 0.5, 0.75])).abs().max() < 0.02,
        "magnitudes are uniform between 0 and 1",
        seen=f"quartiles {[round(q, 2) for q in quartiles.tolist()]}",
        expected="0.25, 0.5, 0.75",
    )
    _independent(judge, on, flat)
    again = judge.tensor(judge.call(fn, N, prob), (N, 2, 6))
    judge.that(
        not torch.equal(again, x),
        "two calls give different samples",
        seen="the same",
        likely="a seed is set in the function",
    )
    edges = judge.tensor(judge.call(fn, 64, torch.tensor([[0.0, 1.0]])), (64, 1, 2))
    judge.that((edges[..., 0] == 0).all(), "a feature of probability 0 is never active", seen="it is active")
    judge.that(
        (edges[..., 1] != 0).double().mean() > 0.9, "a feature of probability 1 is always active", seen="it is absent"
    )


@exercise("The toy model")
def reconstruct(fn: Any, judge: Judge) -> None:
    W, b, x = judge.randn(3, 2, 5), judge.randn(3, 5), judge.randn(7, 3, 5)
    linear = torch.stack([torch.stack([W[i].T @ (W[i] @ x[k, i]) for i in range(3)]) for k in range(7)])
    hidden_relu = torch.stack([torch.stack([W[i].T @ torch.relu(W[i] @ x[k, i]) for i in range(3)]) for k in range(7)])
    judge.close(
        judge.call(fn, W, b, x),
        torch.relu(linear + b),
        "ReLU(W^T W x + b)",
        mistakes={
            "the bias is missing": torch.relu(linear),
            "the bias is subtracted: its sign is +": torch.relu(linear - b),
            "the bias is added after the ReLU; it belongs inside": torch.relu(linear) + b,
            "the ReLU is missing": linear + b,
            "the hidden layer of this model is linear: one ReLU, at the output": torch.relu(hidden_relu + b),
            "a ReLU on the hidden layer, and none or no bias at the output": hidden_relu + b,
        },
    )
    x = torch.eye(5)[:, None]  # one feature at a time through a pentagon
    turn = _shape_of("pentagon")
    want = torch.relu(torch.cos(2 * math.pi * (torch.arange(5)[:, None] - torch.arange(5)) / 5) - COS72)[:, None]
    judge.close(
        judge.call(fn, turn, torch.full((1, 5), -COS72), x), want, f"{HAND_WORKED}: a pentagon with bias -0.309"
    )
    one = judge.tensor(judge.call(fn, W[:1], b[:1], torch.zeros(1, 1, 5)), (1, 1, 5))
    judge.close(one, torch.relu(b[:1])[None], "a single, empty sample")


@exercise("The toy model")
def interference(fn: Any, judge: Judge) -> None:
    W = _random_weights(judge)
    G = W.mT @ W
    length = G.diagonal(dim1=-2, dim2=-1).sqrt()
    off = G - torch.diag_embed(length**2)
    judge.close(
        judge.call(fn, W),
        (off**2).sum(-1) / length**2,
        "sum over j != i of (w_i_hat . w_j)^2",
        mistakes={
            "a feature does not interfere with itself: leave out j = i": (G**2).sum(-1) / length**2,
            "nothing is normalised: w_i should have length 1": (off**2).sum(-1),
            "both vectors are normalised: only w_i is, as a long w_j disturbs more": (
                off**2 / (length**2)[:, None]
            ).sum(-1)
            / length**2,
            "the wrong vector is normalised: w_i_hat is the feature that reads": (off**2 / (length**2)[:, None]).sum(
                -1
            ),
            "the squares are missing": off.sum(-1) / length,
            "absolute values instead of squares": off.abs().sum(-1) / length,
            "a mean instead of a sum": (off**2).sum(-1) / length**2 / 7,
            "divided by the length, not the squared length: w_i_hat appears squared": (off**2).sum(-1) / length,
        },
    )
    for shape, value in (
        ("orthogonal", 0.0),
        ("antipodal pair", 1.0),
        ("pentagon", 2 * (COS72**2 + math.cos(math.radians(144)) ** 2)),
    ):
        hand = _shape_of(shape)
        got = judge.tensor(judge.call(fn, hand), (1, hand.shape[-1]))
        judge.that(
            (got - value).abs().max() < 1e-3,
            f"{HAND_WORKED}: features of length 1, {shape}",
            seen=got,
            expected=value,
        )
    W[1, :, 2] = 0
    got = judge.tensor(judge.call(fn, W), (3, 7))
    judge.that(got[1, 2] == 0, "a feature without a direction has interference 0", seen=got[1, 2])
    others = torch.cat([W[1, :, :2], W[1, :, 3:]], dim=1)[None]
    kept = judge.tensor(judge.call(fn, others), (1, 6))
    judge.close(torch.cat([got[1, :2], got[1, 3:]]), kept[0], "a feature without a direction disturbs no other")
    W[1, :, 3] *= 1e-3
    length2 = (W**2).sum(1)
    want = torch.where(length2 > 0, ((W.mT @ W) ** 2).sum(-1) / length2.clamp_min(1e-30) - length2, 0.0)
    judge.close(judge.call(fn, W), want, "the same with a short vector", likely="a short vector is represented, too")


def _short_and_alone(judge: Judge, fn: Any, value: float, measure: str) -> None:
    """One check: a feature that is short, but represented and orthogonal to all others, is measured like any other."""
    W = torch.zeros(2, 4, 5)
    W[:, :3, :4] = judge.randn(2, 3, 4)
    W[:, 3, 4] = 0.01
    got = judge.tensor(judge.call(fn, W), (2, 5))
    judge.that(
        (got[:, 4] - value).abs().max() < 1e-3,
        f"a short vector that is orthogonal to all others has {measure} {value:g}",
        seen=got[:, 4],
        likely="only a vector of length 0 is not represented: no threshold, and nothing added to the denominator",
    )


@exercise("Sharing fairly: dimensions per feature")
def dimensions_per_feature(fn: Any, judge: Judge) -> None:
    W = _random_weights(judge)
    G = W.mT @ W
    length2 = G.diagonal(dim1=-2, dim2=-1)
    off2 = (G**2).sum(-1) - length2**2
    judge.close(
        judge.call(fn, W),
        length2**2 / (G**2).sum(-1),
        "|w_i|^2 / sum over j of (w_i_hat . w_j)^2",
        mistakes={
            "the sum leaves out j = i: it includes the feature itself": length2**2 / off2,
            "w_i is not normalised in the sum": length2 / (G**2).sum(-1),
            "both vectors are normalised in the sum, and the length is not counted": 1
            / (G**2 / length2[..., None] / length2[:, None]).sum(-1),
            "both vectors are normalised in the sum: only w_i is": length2
            / (G**2 / length2[..., None] / length2[:, None]).sum(-1),
            "the numerator is the length; it should be squared": length2**1.5 / (G**2).sum(-1),
            "the squares in the sum are missing": length2 / (G.sum(-1) / length2.sqrt()),
            "absolute values instead of squares in the sum": length2 / (G.abs().sum(-1) / length2.sqrt()),
            "this is the interference: D is the ratio of the feature's own part to the whole": off2 / length2,
        },
    )
    for shape, value in (("orthogonal", 1.0), ("antipodal pair", 1 / 2), ("pentagon", 2 / 5)):
        hand = _shape_of(shape)
        got = judge.tensor(judge.call(fn, hand), (1, hand.shape[-1]))
        judge.that((got - value).abs().max() < 1e-3, f"{HAND_WORKED}: {shape}", seen=got, expected=value)
    W[1, :, 2] = 0
    got = judge.tensor(judge.call(fn, W), (3, 7))
    judge.that(got[1, 2] == 0, "a feature that is not represented has 0 dimensions", seen=got[1, 2], expected=0)
    others = torch.cat([W[1, :, :2], W[1, :, 3:]], dim=1)[None]
    kept = judge.tensor(judge.call(fn, others), (1, 6))
    judge.close(
        torch.cat([got[1, :2], got[1, 3:]]),
        kept[0],
        "a feature that is not represented changes no other",
        likely="a NaN of one feature spread to the others of its model before it was replaced",
    )
    _short_and_alone(judge, fn, 1.0, "D =")
    total = float(got.sum(-1).max())
    judge.that(
        total < 4 + 1e-3, "the features of a model share no more than its dimensions", seen=total, expected="at most 4"
    )


@exercise("Five features in two dimensions")
def five_in_two(fn: Any, judge: Judge) -> None:
    answer = judge.call(fn)
    judge.that(isinstance(answer, tuple | list) and len(answer) == 2, "the answer is a pair (W, b)", seen=answer)
    W, b = judge.tensor(answer[0], (2, 5), "W"), judge.tensor(answer[1], (5,), "b")
    out = torch.relu(torch.eye(5, dtype=torch.float64) @ W.T @ W + b)  # row i: what is read if feature i alone is 1
    own, others = out.diagonal(), out - torch.diag(out.diagonal())
    silent = [i + 1 for i in range(5) if own[i] < 1e-3]
    judge.that(
        not silent,
        "every feature can be read",
        seen=f"feature {silent} reads 0 when it is 1",
        likely="all five need a direction of their own in the plane, none of length 0 and no two alike",
    )
    leak = float(others.max())
    on = int(others.max(dim=1).values.argmax())
    twice = bool(
        (torch.nn.functional.normalize(W, dim=0).T @ torch.nn.functional.normalize(W, dim=0)).fill_diagonal_(0).max()
        > 0.99
    )
    judge.that(
        leak < 2e-4,
        "nothing else is read",
        seen=f"with feature {on + 1} alone, feature {int(others[on].argmax()) + 1} reads {leak:.3f}",
        expected="0",
        likely="two features have the same direction: no bias can tell them apart"
        if twice
        else "a bias of the right size and sign silences the neighbours (the far corners are negative already)",
    )
    worst = int((own - 1).abs().argmax())
    judge.that(
        (own - 1).abs().max() < 2e-4,
        "every feature is returned in full",
        seen=f"feature {worst + 1} reads {own[worst]:.3f}",
        expected="1",
        likely="the bias costs the feature some of its size: longer vectors buy it back"
        if own[worst] < 1
        else "the vectors are too long for this bias",
    )
    nothing = float(torch.relu(b).max())
    judge.that(nothing < 1e-3, "an empty input gives an empty output", seen=nothing, likely="a bias is positive")


@exercise("A phase change")
def phase_boundary(fn: Any, judge: Judge) -> None:
    equal = judge.tensor(judge.call(fn, torch.tensor([1.0])), (1,))
    judge.that(
        abs(float(equal) - 4 / 7) < 1e-3,
        f"{HAND_WORKED}: two equally important features, p/3 - p^2/4 = 2 p^2/6",
        seen=float(equal),
        expected="0.5714 (4/7)",
        likely="dropping costs the variance, p/3 - p^2/4: the mean p/2 is answered by the bias"
        if abs(float(equal) - 1) < 1e-3
        else "",
    )
    importance = torch.cat([judge.rand(6, low=0.05, high=0.9), judge.rand(6, low=1.2, high=20.0)])
    low = importance.clamp_max(1)
    judge.close(
        judge.call(fn, importance),
        4 * low / (2 * (1 + importance) + 3 * low),
        "the density at which dropping the less important feature costs as much as the collisions",
        mistakes={
            "one drops the less important of the two: its importance is min(1, I)": 4
            * importance
            / (2 * (1 + importance) + 3 * importance),
            "if I > 1 it is the first feature, of importance 1, that one drops": 4 * importance / (2 + 5 * importance),
            "one drops the less important feature, whose importance is not always 1": 4 / (2 * (1 + importance) + 3),
            "in a collision both features are off: their importances add up to 1 + I": 4 * low / (2 + 3 * low),
            "dropping costs the variance, p/3 - p^2/4: the mean p/2 is answered by the bias": 2
            * low
            / (1 + importance),
        },
    )


@exercise("When features come together")
def sample_exclusive(fn: Any, judge: Judge) -> None:
    N, p = 20_000, float(judge.rand(1, low=0.15, high=0.45))
    x = judge.tensor(judge.call(fn, N, 3, p), (N, 3, 2))
    active = (x != 0).double()
    together = (active[..., 0] * active[..., 1]).mean()
    judge.that(
        together == 0,
        "the two features of a pair are never active together",
        seen=f"both are active in {together:.3f} of the samples",
        likely="two independent draws collide with probability p^2",
    )
    density = active.mean(dim=(0, 1))
    noise = 6 * math.sqrt(p * (1 - p) / (3 * N))
    guesses = {
        "a collision is resolved by a coin, and nobody replaces the loser: density p - p^2/2. Decide by one draw": p
        - p**2 / 2,
        "features that lose a collision are lost: then a feature is active with p (1 - p) only. Decide by one draw": p
        * (1 - p),
        "p is the probability of each feature, so the pair is active with probability 2p": p / 2,
        "one of the two is always active here; mostly there should be none": 0.5,
    }
    worst = int((density - p).abs().argmax())
    likely = next((text for text, value in guesses.items() if abs(density[worst] - value) < noise), "")
    judge.that(
        ((density - p).abs() < noise).all(),
        "each feature of a pair is active with probability p",
        seen=f"first {density[0]:.3f}, second {density[1]:.3f}",
        expected=f"{p:.3f} each",
        likely=likely,
    )
    mean, spread = zip(*[(m.mean(), m.std()) for m in (x[..., k][active[..., k].bool()] for k in (0, 1))], strict=True)
    judge.that(
        all(abs(m - 0.5) < 0.02 for m in mean) and all(abs(s - 12**-0.5) < 0.02 for s in spread),
        "magnitudes are uniform between 0 and 1",
        seen=f"mean {mean[0]:.3f} and {mean[1]:.3f}, standard deviation {spread[0]:.3f} and {spread[1]:.3f}",
        expected="mean 0.5, standard deviation 0.289",
        likely="the draw that decided which is active is used as its magnitude as well",
    )
    each = active.mean(dim=0)
    judge.that(
        ((each - p).abs() < 6.5 * math.sqrt(p * (1 - p) / N)).all(),
        "that holds in every pair",
        seen=f"densities from {each.min():.3f} to {each.max():.3f}",
        expected=f"{p:.3f}",
    )
    pairs = torch.corrcoef(active.sum(-1).T).fill_diagonal_(0).abs().max()
    judge.that(
        pairs < 7 / math.sqrt(N),
        "different pairs are independent",
        seen=f"a correlation of {pairs:.2f}",
        likely="one draw shared by all pairs: draw for each pair",
    )
    magnitude = x[active.bool()]
    quartiles = torch.quantile(magnitude[:100_000], torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    judge.that(
        (quartiles - torch.tensor([0.25, 0.5, 0.75])).abs().max() < 0.02 and len(magnitude.unique()) > N // 10,
        "magnitudes are uniform between 0 and 1",
        seen=f"quartiles {[round(q, 2) for q in quartiles.tolist()]}",
        expected="0.25, 0.5, 0.75",
    )
    for k in (0, 1):
        _independent(judge, active[..., k], x[..., k])
    for i, j in ((0, 1), (1, 2), (0, 2)):
        signs = active[:, [i, j], 0] - active[:, [i, j], 1]
        signed = (x[:, [i, j], 0] + x[:, [i, j], 1]) * (signs != 0)
        both = (signs != 0).all(dim=-1)
        who = torch.corrcoef(signs[both].T)[0, 1].abs()
        how = torch.corrcoef(signed[both].T)[0, 1].abs()
        judge.that(
            max(who, how) < 7 / math.sqrt(int(both.sum())),
            "different pairs are independent",
            seen=f"when two pairs are active: correlation of which is {who:.2f}, of the sizes {how:.2f}",
            likely="one draw shared by all pairs: draw for each pair",
        )
    again = judge.tensor(judge.call(fn, N, 3, p), (N, 3, 2))
    judge.that(
        not torch.equal(again, x),
        "two calls give different samples",
        seen="the same",
        likely="a seed is set in the function",
    )
    full = judge.tensor(judge.call(fn, 2000, 2, 0.5), (2000, 2, 2))
    judge.that(
        ((full != 0).sum(-1) <= 1).all() and (full != 0).double().mean() > 0.45,
        "with p = 1/2 one of the two is always active",
        seen=f"active in {(full != 0).double().mean():.3f} of the entries",
        expected="0.5",
    )


@functools.cache
def _sweep() -> tuple[Tensor, Tensor]:
    """Of the shipped sweep's first seed: squared lengths [densities, features], and the share of represented
    features within 0.02 of half a dimension, by density."""
    from interp_edu import weights

    W = weights.load("superposition_sweep")["W"][0].double()
    G = W.mT @ W
    length2 = G.diagonal(dim1=-2, dim2=-1)
    D = length2**2 / (G**2).sum(-1)
    kept = length2 > 0.25
    return length2, (((D - 0.5).abs() < 0.02) & kept).sum(-1) / kept.sum(-1).clamp_min(1)


def _whole(value: Any) -> int | None:
    """The whole number that a Python, NumPy or torch scalar stands for, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return int(number) if number.is_integer() and not isinstance(value, bool) else None


@exercise("The geometry of 400 features in 30 dimensions")
def plateau(answer: Any, judge: Judge) -> None:
    keys = ("first", "last", "features")
    judge.that(isinstance(answer, dict) and set(answer) == set(keys), f"the answer has the entries {keys}", seen=answer)
    length2, share = _sweep()
    kept = length2 > 0.25
    on = [k for k in range(len(share)) if share[k] >= 0.95]
    first, last = on[0], on[-1]
    number = {key: _whole(value) for key, value in answer.items()}
    for key, right in (("first", first), ("last", last)):
        value = number[key]
        there = (
            f": {100 * share[value]:.0f} % of {int(kept[value].sum())}"
            if value is not None and 0 <= value < len(share)
            else ""
        )
        judge.that(
            value == right,
            f"the {key} density of the plateau",
            seen=f"{answer[key]!r}{there}",
            likely="an index is a whole number from 0 to 19"
            if not there
            else "the last one that is on it is asked for, not the first that is not"
            if key == "last" and value == right + 1
            else "indices start at 0"
            if value == right + 1
            else "the share is among the represented features (length above 1/2), and has to be at least 95 %",
        )
    right = int(kept[last].sum())
    hints = {
        400: "that is all features of the model; count those with a length above 1/2",
        30: "that is the number of dimensions; each of these 30 lines holds two features",
        int(kept[first].sum()): "that is the number at the first density of the plateau",
        int((length2[last] > 0.5).sum()): "length above 1/2 means squared length above 1/4",
    }
    hints.pop(right, None)
    judge.that(
        answer["features"] == right,
        "the features represented at its last density",
        seen=answer["features"],
        likely=hints.get(number["features"] or 0, ""),
    )


@exercise("Neurons: polysemantic with and without superposition")
def absolute_value(fn: Any, judge: Judge) -> None:
    for n in (1, 3, 4):
        answer = judge.call(fn, n)
        judge.that(
            isinstance(answer, tuple | list) and len(answer) == 2, "the answer is a pair (W_in, W_out)", seen=answer
        )
        W_in = judge.tensor(answer[0], (2 * n, n), f"W_in for n={n}")
        W_out = judge.tensor(answer[1], (n, 2 * n), f"W_out for n={n}")
        x = torch.cat([judge.randn(16, n).double(), torch.zeros(1, n)])
        got, want = torch.relu(x @ W_in.T) @ W_out.T, x.abs()
        judge.close(
            got,
            want,
            f"|x| for n={n}",
            mistakes={
                "this is x: the neuron for negative x has to count positively as well": x,
                "only positive x arrive: for each feature one neuron has to see -x": torch.relu(x),
                "only negative x arrive: for each feature one neuron has to see +x": torch.relu(-x),
                "positive x count twice and negative ones not at all: one of the two neurons has to see -x": 2
                * torch.relu(x),
                "twice |x|": 2 * want,
                "minus |x|": -want,
                "the features' parts are added up: each output reads its own two neurons": want.sum(
                    -1, keepdim=True
                ).expand_as(want),
            },
            likely="does each output read its own two neurons?",
        )


EVIDENCE = {
    "a": (
        "cannot tell",
        "a neuron that responds to three unrelated features",
        {
            "superposition": "a turned basis makes polysemantic neurons without any superposition",
            "no superposition": "superposition makes such neurons too",
        },
    ),
    "b": (
        "superposition",
        "six features of length about 1 in four dimensions",
        {
            "no superposition": "at most four directions are orthogonal in four dimensions: some of the six overlap",
            "cannot tell": "whatever the basis: six directions in four dimensions have to overlap",
        },
    ),
    "c": (
        "no superposition",
        "W^T W is the identity, and every neuron responds to all features",
        {
            "superposition": "W^T W says that no feature disturbs another; only the basis of neurons is turned",
            "cannot tell": "W^T W does not depend on the basis; its off-diagonal entries are the interference",
        },
    ),
    "d": (
        "cannot tell",
        "probes find 1,000 properties in 500 dimensions",
        {
            "superposition": "a thousand properties that can be read off may be combinations of fewer features",
            "no superposition": "a thousand properties in 500 dimensions do not speak against it",
        },
    ),
    "e": (
        "superposition",
        "twenty represented features in ten dimensions, each with D_i = 1/2",
        {
            "no superposition": "twenty directions cannot be orthogonal in ten dimensions",
            "cannot tell": "whatever the basis: twenty directions in ten dimensions have to overlap",
        },
    ),
    "f": (
        "cannot tell",
        "D* = 1",
        {
            "superposition": "thirty orthogonal features in thirty dimensions have D* = 1 as well",
            "no superposition": "D* only adds up squared lengths: many short vectors give 1 too; look at the D_i",
        },
    ),
}


@exercise("Neurons: polysemantic with and without superposition")
def evidence(answer: Any, judge: Judge) -> None:
    judge.that(
        isinstance(answer, dict) and set(answer) == set(EVIDENCE),
        f"the answer has the entries {', '.join(EVIDENCE)}",
        seen=answer,
    )
    for key, (right, claim, wrong) in EVIDENCE.items():
        judge.choice(answer[key], {right: "", **wrong}, right, f"{key}: {claim}")


@exercise("The toy model")
def loss_gradient(fn: Any, judge: Judge) -> None:
    for batch, n, m in ((9, 5, 2), (4, 3, 6)):
        W, b = judge.randn(m, n), 0.5 * judge.randn(n)
        importance, x = judge.rand(n, low=0.2, high=3.0), judge.rand(batch, n) * (judge.rand(batch, n) < 0.6)
        answer = judge.call(fn, W, b, importance, x)
        judge.that(
            isinstance(answer, tuple | list) and len(answer) == 2, "the answer is a pair (grad_W, grad_b)", seen=answer
        )
        want_W, want_b = _autograd(W, b, importance, x)
        detached = [_autograd(W, b, importance, x, detach=part)[0] for part in ("read-in", "read-out")]
        linear_W, linear_b = _autograd(W, b, importance, x, relu=False)
        plain_W, plain_b = _autograd(W, b, torch.ones(n), x)
        scale = {
            "the sign: the gradient points to larger losses (x_hat - x)": -1,
            "the factor 2 of the square is missing": 0.5,
            "the loss is a mean over batch and features: divide by both": batch * n,
            "the loss is a mean over features too": n,
            "the loss is a mean over the batch too": batch,
        }
        judge.close(
            answer[1],
            want_b,
            "the gradient by b",
            what="grad_b",
            mistakes={
                "the ReLU passes nothing on where its output is 0": linear_b,
                "the importance is missing": plain_b,
                **{name: want_b * factor for name, factor in scale.items()},
            },
        )
        judge.close(
            answer[0],
            want_W,
            "the gradient by W",
            what="grad_W",
            mistakes={
                "W is used twice: this is the part from reading out, the part from reading in is missing": detached[0],
                "W is used twice: this is the part from reading in, the part from reading out is missing": detached[1],
                "the ReLU passes nothing on where its output is 0": linear_W,
                "the importance is missing": plain_W,
                **{name: want_W * factor for name, factor in scale.items()},
            },
        )


def _autograd(
    W: Tensor, b: Tensor, importance: Tensor, x: Tensor, *, detach: str = "", relu: bool = True
) -> tuple[Tensor, Tensor]:
    """The gradients by autograd in float64, with one use of W or the ReLU's derivative left out if asked."""
    with torch.enable_grad():
        W, b = W.double().requires_grad_(), b.double().requires_grad_()
        x, importance = x.double(), importance.double()
        h = x @ (W.detach() if detach == "read-in" else W).T
        y = h @ (W.detach() if detach == "read-out" else W) + b
        x_hat = torch.relu(y) if relu else y + (torch.relu(y) - y).detach()
        loss = (importance * (x_hat - x) ** 2).mean()
        grad_W, grad_b = torch.autograd.grad(loss, [W, b])
    return grad_W, grad_b
