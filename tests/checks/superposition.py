"""Chapter 2's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import math

import numpy as np
import torch

from interp_edu import superposition as sp
from interp_edu.toy_training import loss_gradient
from tests.checks.bank import Answers

# 2.1 sample_features


def two_draws(batch, prob):
    mask = torch.rand(batch, *prob.shape) <= prob
    return mask.float() * torch.rand(batch, *prob.shape)


def numpy_double(batch, prob):
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    return np.where(rng.random((batch, *prob.shape)) < prob.numpy(), 1 - rng.random((batch, *prob.shape)), 0.0)


def relu_of_uniform(batch, prob):
    return torch.relu(1 - torch.rand(batch, *prob.shape) / prob)


def neighbours_draw(batch, prob):
    u = torch.rand(batch, *prob.shape)
    return (u < prob) * u.roll(1, -1)


def seeded_inside(batch, prob):
    g = torch.Generator().manual_seed(0)
    return (torch.rand(batch, *prob.shape, generator=g) < prob) * torch.rand(batch, *prob.shape, generator=g)


def two_values(batch, prob):
    sign = torch.randint(0, 2, (batch, *prob.shape)) * 2 - 1
    return (torch.rand(batch, *prob.shape) < prob) * (0.5 + sign * 12**-0.5)


SAMPLE = Answers(
    right=[two_draws, numpy_double, relu_of_uniform, lambda n, p: sp.sample_features(n, p).double()],
    wrong=[
        (lambda n, p: (torch.rand(n, *p.shape) < p).float(), "multiply it by magnitudes"),
        (lambda n, p: (u := torch.rand(n, *p.shape)) * (u < p), "divide by p"),
        (lambda n, p: (u := torch.rand(n, *p.shape)) * (u > 1 - p), "one draw decides both"),
        (lambda n, p: (torch.rand(n, *p.shape) < 1 - p) * torch.rand(n, *p.shape), "probability that it is absent"),
        (lambda n, p: (torch.rand(p.shape) < p) * torch.rand(n, *p.shape), "one mask shared by all samples"),
        (lambda n, p: (torch.rand(n, len(p), 1) < p) * torch.rand(n, *p.shape), "one mask shared by features"),
        (
            lambda n, p: (torch.rand(n, 1, p.shape[1]) < p) * torch.rand(n, *p.shape),
            "one mask shared by features or instances",
        ),
        (lambda n, p: (torch.rand(n, *p.shape) < p) * torch.rand(n, len(p), 1), "one magnitude shared by features"),
        (lambda n, p: (torch.rand(n, *p.shape) < p) * torch.rand(p.shape), "one magnitude shared by all samples"),
        (lambda n, p: (torch.rand(n, *p.shape) < p) * torch.randn(n, *p.shape), "between 0 and 1"),
        (lambda n, p: (torch.rand(n, *p.shape) < p.mean()) * torch.rand(n, *p.shape), "its own probability"),
        (lambda n, p: torch.rand(n, *p.shape), "the mask is missing"),
        (lambda n, p: sp.sample_features(n, p)[:, 0], "wrong shape"),
        (lambda n, p: None, "no return statement"),
        (neighbours_draw, "numbers that were drawn once are used twice"),
        (seeded_inside, "a seed is set in the function"),
        (lambda n, p: two_draws((n + 1) // 2, p).repeat(2, 1, 1)[:n], "half of the batch"),
        (two_values, "quartiles"),
    ],
)

# 2.2 reconstruct


def linear(W, b, x):
    return torch.einsum("ihf,ihg,big->bif", W, W, x)


def by_loops(W, b, x):
    return torch.stack(
        [torch.stack([torch.relu(w.T @ (w @ v) + c) for w, c, v in zip(W, b, s, strict=True)]) for s in x]
    )


RECONSTRUCT = Answers(
    right=[
        lambda W, b, x: (linear(W, b, x) + b).clamp(min=0),
        by_loops,
        lambda W, b, x: torch.relu(torch.einsum("ifg,big->bif", W.mT @ W, x).add_(b)).double(),
        lambda W, b, x: torch.relu((x.transpose(0, 1) @ W.mT @ W).transpose(0, 1) + b),
    ],
    wrong=[
        (lambda W, b, x: torch.relu(linear(W, b, x)), "bias is missing"),
        (lambda W, b, x: torch.relu(linear(W, b, x) - b), "sign is +"),
        (lambda W, b, x: torch.relu(linear(W, b, x)) + b, "belongs inside"),
        (lambda W, b, x: linear(W, b, x) + b, "ReLU is missing"),
        (
            lambda W, b, x: torch.relu(
                torch.einsum("ihf,bih->bif", W, torch.relu(torch.einsum("ihf,bif->bih", W, x))) + b
            ),
            "one ReLU",
        ),
        (lambda W, b, x: torch.einsum("ihf,bif->bih", W, x), "wrong shape"),
        (lambda W, b, x: W @ W @ x + b, "your code raised"),
        (lambda W, b, x: torch.relu(linear(W, b, x) + b).squeeze(0), "wrong shape"),
        (lambda W, b, x: torch.relu(linear(W, b, x.relu()) + b), "ReLU(W^T W x + b)"),
        (lambda W, b, x: torch.sigmoid(linear(W, b, x) + b), "ReLU(W^T W x + b)"),
    ],
)

# 2.3 interference


def gram(W):
    G = W.mT @ W
    return G, G.diagonal(dim1=-2, dim2=-1)


def _safe(fn):
    """The same formula with 0 for features of length 0, so that the formula itself is what is wrong."""

    def wrapped(W):
        return torch.nan_to_num(fn(W), nan=0.0, posinf=0.0)

    return wrapped


def off(W):
    G, length2 = gram(W)
    return G - torch.diag_embed(length2)


def interference_by_loops(W):
    out = torch.zeros(W.shape[0], W.shape[2])
    for k, w in enumerate(W):
        for i in range(W.shape[2]):
            if w[:, i].norm() > 0:
                unit = w[:, i] / w[:, i].norm()
                out[k, i] = sum((unit @ w[:, j]) ** 2 for j in range(W.shape[2]) if j != i)
    return out


INTERFERENCE = Answers(
    right=[
        interference_by_loops,
        lambda W: sp.interference(W.double()),
        _safe(lambda W: (off(W) ** 2 / gram(W)[1][..., None]).sum(-1)),
        lambda W: (
            (torch.nn.functional.normalize(W, dim=1).mT @ W).square().sum(-1).sub_((W**2).sum(1)).clamp_(min=0).numpy()
        ),
    ],
    wrong=[
        (_safe(lambda W: (gram(W)[0] ** 2).sum(-1) / gram(W)[1]), "leave out j = i"),
        (lambda W: (off(W) ** 2).sum(-1), "nothing is normalised"),
        (
            _safe(lambda W: (off(W) ** 2 / gram(W)[1][:, None] / gram(W)[1][..., None]).sum(-1)),
            "both vectors are normalised",
        ),
        (_safe(lambda W: (off(W) ** 2 / gram(W)[1][:, None].clamp(min=1e-30)).sum(-1)), "wrong vector is normalised"),
        (_safe(lambda W: off(W).abs().sum(-1) / gram(W)[1].sqrt()), "absolute values instead of squares"),
        (_safe(lambda W: (off(W) ** 2).sum(-1) / gram(W)[1].sqrt()), "appears squared"),
        (lambda W: (off(W) ** 2).sum(-1) / gram(W)[1], "NaN"),
        (lambda W: sp.interference(W).sum(-1), "wrong shape"),
        (lambda W: torch.where((W**2).sum(1) > 1e-3, sp.interference(W), 0.0), "short vector"),
        (_safe(lambda W: (off(W) ** 2).mean(-1) / gram(W)[1]), "a mean instead of a sum"),
    ],
)

# 2.4 dimensions_per_feature


def dimensions_by_loops(W):
    out = torch.zeros(W.shape[0], W.shape[2], dtype=torch.float64)
    for k, w in enumerate(W.double()):
        for i in range(W.shape[2]):
            if (length := w[:, i].norm()) > 0:
                out[k, i] = length**2 / sum(((w[:, i] / length) @ w[:, j]) ** 2 for j in range(W.shape[2]))
    return out


def cosines2(W):
    G, length2 = gram(W)
    return torch.nan_to_num(G**2 / length2[..., None] / length2[:, None])


def nan_spreads(W):
    length = W.norm(dim=1)
    unit = W / length[:, None]
    return torch.nan_to_num(length**2 / ((unit.mT @ unit) * length[:, None]).square().sum(-1))


DIMENSIONS = Answers(
    right=[
        dimensions_by_loops,
        lambda W: sp.dimensions_per_feature(W).numpy(),
        _safe(lambda W: gram(W)[1] ** 2 / (gram(W)[0] ** 2).sum(1)),
        _safe(lambda W: gram(W)[1] / (torch.nn.functional.normalize(W, dim=1).mT @ W).square().sum(-1)),
    ],
    wrong=[
        (lambda W: gram(W)[1] ** 2 / (gram(W)[0] ** 2).sum(-1), "NaN"),
        (lambda W: gram(W)[1] ** 2 / ((gram(W)[0] ** 2).sum(-1) + 1e-1), "|w_i|^2 / sum over j"),
        (_safe(lambda W: gram(W)[1] / (gram(W)[0] ** 2).sum(-1)), "w_i is not normalised"),
        (_safe(lambda W: 1 / cosines2(W).sum(-1)), "both vectors are normalised"),
        (_safe(lambda W: gram(W)[1] / cosines2(W).sum(-1)), "only w_i is"),
        (_safe(lambda W: gram(W)[1] ** 1.5 / (gram(W)[0] ** 2).sum(-1)), "should be squared"),
        (_safe(lambda W: gram(W)[1] ** 1.5 / gram(W)[0].abs().sum(-1)), "absolute values instead of squares"),
        (_safe(lambda W: gram(W)[1] ** 2 / (off(W) ** 2).sum(-1)), "includes the feature itself"),
        (lambda W: torch.where(gram(W)[1] > 0, sp.dimensions_per_feature(W), 1.0), "not represented has 0"),
        (
            lambda W: torch.nan_to_num(
                gram(W)[1] / (torch.nan_to_num(W / W.norm(dim=1, keepdim=True), nan=torch.nan).mT @ W).square().sum(-2)
            ),
            "both vectors",
        ),
        (nan_spreads, "changes no other"),
        (lambda W: torch.where(gram(W)[1] > 1e-2, sp.dimensions_per_feature(W), 0.0), "no threshold"),
        (lambda W: gram(W)[1] ** 2 / ((gram(W)[0] ** 2).sum(-1) + 1e-5), "nothing added to the denominator"),
    ],
)

# 2.5 five_in_two


def polygon(squared_length, bias, turn=0.0, count=5):
    angles = turn + 2 * math.pi * torch.arange(count) / count
    W = math.sqrt(squared_length) * torch.stack([angles.cos(), angles.sin()])
    W = torch.cat([W, torch.zeros(2, 5 - count)], dim=1)
    return W, torch.full((5,), float(bias))


COS = math.cos(math.radians(72))
EXACT = 1 / (1 - COS)


def irregular():
    """Five directions at uneven angles, each scaled for itself, biases found from the largest neighbour."""
    angles = torch.deg2rad(torch.tensor([0.0, 65, 140, 215, 290]))
    W = torch.stack([angles.cos(), angles.sin()])
    G = W.T @ W
    leak = (G - 2 * torch.eye(5)).amax(dim=0)
    s = float(1 / (1 - leak.max()))
    return math.sqrt(s) * W, torch.full((5,), 1 - s)


FIVE = Answers(
    right=[
        lambda: polygon(EXACT, -EXACT * COS),
        lambda: polygon(EXACT, -EXACT * COS, turn=0.7),
        lambda: [t.double().numpy() for t in polygon(EXACT, -EXACT * COS)],
        irregular,
    ],
    wrong=[
        (lambda: polygon(1, 0), "bias of the right size"),
        (lambda: polygon(1, -COS), "longer vectors"),
        (lambda: polygon(EXACT, EXACT * COS), "bias of the right size"),
        (lambda: polygon(3, 1 - 3 * (1 - COS) - 3 * COS + 1), "too long"),
        (lambda: polygon(1, 0, count=4), "feature [5] reads 0"),
        (lambda: polygon(1, 0, count=2), "every feature can be read"),
        (lambda: (torch.eye(2, 5), torch.zeros(5)), "every feature can be read"),
        (lambda: (torch.tensor([[1.0, 0, -1, 0, 1], [0, 1, 0, -1, 0]]), torch.zeros(5)), "same direction"),
        (lambda: (polygon(EXACT, 0)[0].T, torch.full((5,), -EXACT * COS)), "wrong shape"),
        (lambda: polygon(EXACT, 0)[0], "a pair (W, b)"),
    ],
)

# 2.6 phase_boundary


def bisect(importance):
    low, high = torch.full_like(importance, 1e-6), torch.ones_like(importance)
    for _ in range(60):
        p = (low + high) / 2
        more = (1 + importance) * p / 6 > importance.clamp(max=1) * (1 / 3 - p / 4)
        low, high = torch.where(more, low, p), torch.where(more, p, high)
    return low


BOUNDARY = Answers(
    right=[
        bisect,
        lambda I: (lambda M: M / 3 / ((1 + I) / 6 + M / 4))(torch.minimum(I, torch.ones(()))).double(),
        lambda I: np.array([4 * min(1, i) / (2 * (1 + i) + 3 * min(1, i)) for i in I.tolist()]),
    ],
    wrong=[
        (lambda I: 4 * I / (2 * (1 + I) + 3 * I), "min(1, I)"),
        (lambda I: 4 / (2 * (1 + I) + 3), "not always 1"),
        (lambda I: 2 * I.clamp(max=1) / (1 + I), "mean p/2 is answered by the bias"),
        (lambda I: 4 * I.clamp(max=1) / (2 + 3 * I.clamp(max=1)), "hand-worked case"),
        (lambda I: 4 * I.clamp(max=1) / (4 + 3 * I.clamp(max=1)), "collisions"),
        (lambda I: 1 - 4 * I.clamp(max=1) / (2 * (1 + I) + 3 * I.clamp(max=1)), "hand-worked case"),
        (lambda I: torch.tensor(4 / 7), "wrong shape"),
    ],
)

# 2.7 sample_exclusive


def broken_sampler(batch, pairs, p):
    x = torch.rand(batch, pairs, 2)
    active = torch.rand(batch, pairs, 2) < p
    active[..., 1] &= ~active.all(dim=-1)
    return x * active


def both_lose(batch, pairs, p):
    active = torch.rand(batch, pairs, 2) < p
    return torch.rand(batch, pairs, 2) * (active & ~active.all(-1, keepdim=True))


def pair_then_coin(batch, pairs, p, factor=2.0):
    active, coin = torch.rand(batch, pairs) < factor * p, torch.rand(batch, pairs) < 0.5
    return torch.rand(batch, pairs, 2) * torch.stack([active & coin, active & ~coin], dim=-1)


def one_number_for_all(batch, pairs, p):
    u = torch.rand(batch, 1).expand(-1, pairs)
    return torch.rand(batch, pairs, 2) * torch.stack([u < p, u > 1 - p], dim=-1)


def one_draw_for_everything(batch, pairs, p):
    u = torch.rand(batch, pairs)
    return torch.stack([torch.where(u < p, u, 0.0), torch.where(u > 1 - p, u, 0.0)], dim=-1)


def one_draw_rescaled(batch, pairs, p):
    u = torch.rand(batch, pairs)
    return torch.stack([torch.where(u < p, u / p, 0.0), torch.where(u > 1 - p, (1 - u) / p, 0.0)], dim=-1)


def categorical(batch, pairs, p):
    which = torch.multinomial(torch.tensor([p, p, 1 - 2 * p]), batch * pairs, replacement=True).reshape(batch, pairs, 1)
    return torch.rand(batch, pairs, 2) * (which == torch.arange(2))


def always_one(batch, pairs, p):
    coin = torch.rand(batch, pairs) < 0.5
    return torch.rand(batch, pairs, 2) * torch.stack([coin, ~coin], dim=-1)


def shared_choice(batch, pairs, p):
    on, first = torch.rand(batch, pairs) < 2 * p, torch.rand(batch, 1) < 0.5
    return torch.rand(batch, pairs, 2) * torch.stack([on & first, on & ~first], dim=-1)


def shared_size(batch, pairs, p):
    u = torch.rand(batch, pairs)
    return torch.rand(batch, 1, 1) * torch.stack([u < p, (u >= p) & (u < 2 * p)], dim=-1)


def uneven_pairs(batch, pairs, p):
    u, cut = torch.rand(batch, pairs), torch.linspace(0.5, 1.5, pairs) * p
    return torch.rand(batch, pairs, 2) * torch.stack([u < cut, (u >= cut) & (u < 2 * p)], dim=-1)


def coin_for_the_loser(batch, pairs, p):
    active, coin = torch.rand(batch, pairs, 2) < p, torch.rand(batch, pairs) < 0.5
    both = active.all(-1)
    active = torch.stack([active[..., 0] & ~(both & coin), active[..., 1] & ~(both & ~coin)], dim=-1)
    return torch.rand(batch, pairs, 2) * active


EXCLUSIVE = Answers(
    right=[pair_then_coin, one_draw_rescaled, categorical],
    wrong=[
        (shared_choice, "draw for each pair"),
        (shared_size, "used twice"),
        (uneven_pairs, "in every pair"),
        (coin_for_the_loser, "resolved by a coin"),
        (broken_sampler, "p (1 - p)"),
        (both_lose, "p (1 - p)"),
        (lambda n, k, p: torch.rand(n, k, 2) * (torch.rand(n, k, 2) < p), "two independent draws collide"),
        (lambda n, k, p: pair_then_coin(n, k, p, factor=1.0), "the pair is active with probability 2p"),
        (always_one, "one of the two is always active"),
        (one_number_for_all, "draw for each pair"),
        (one_draw_for_everything, "used as its magnitude"),
        (lambda n, k, p: (pair_then_coin(n, k, p) > 0).float(), "magnitudes are uniform"),
        (lambda n, k, p: sp.sample_anticorrelated_pairs(n, torch.full((1, 2 * k), p)), "wrong shape"),
    ],
)

# 2.8 plateau: the answer is data, so the right one is worked out from the shipped weights


def plateau(**change):
    from interp_edu import weights

    W = weights.load("superposition_sweep")["W"][0]
    D, kept = sp.dimensions_per_feature(W), W.norm(dim=1) > 0.5
    share = (((D - 0.5).abs() < 0.02) & kept).sum(-1) / kept.sum(-1).clamp_min(1)
    on = (share >= 0.95).nonzero().flatten().tolist()
    return {"first": on[0], "last": on[-1], "features": int(kept[on[-1]].sum())} | change


RIGHT = plateau()
PLATEAU = Answers(
    right=[
        RIGHT,
        {key: float(value) for key, value in RIGHT.items()},
        {key: torch.tensor(value) for key, value in RIGHT.items()},
        {key: np.int64(value) for key, value in RIGHT.items()},
        dict(reversed(RIGHT.items())),
    ],
    wrong=[
        (plateau(first=RIGHT["first"] + 1), "indices start at 0"),
        (plateau(last=RIGHT["last"] + 1), "not the first that is not"),
        (plateau(first=RIGHT["first"] + 0.9), "a whole number"),
        (plateau(features=[60]), "features represented"),
        (plateau(first=RIGHT["first"] - 1), "at least 95 %"),
        (plateau(last=RIGHT["last"] + 2), "last density"),
        (plateau(last="the end"), "a whole number"),
        (plateau(features=400), "count those with a length above 1/2"),
        (plateau(features=30), "each of these 30 lines holds two features"),
        ({"first": RIGHT["first"], "last": RIGHT["last"]}, "entries"),
        ((RIGHT["first"], RIGHT["last"], RIGHT["features"]), "entries"),
        (plateau(features=...), "still `...`"),
    ],
)

# 2.9 absolute_value


def absolute(rows_in, rows_out):
    def fn(n):
        identity = torch.eye(n)
        return torch.cat([s * identity for s in rows_in]), torch.cat([s * identity for s in rows_out], dim=1)

    return fn


def interleaved(n):
    signs = torch.tensor([1.0, -1.0])
    return torch.kron(torch.eye(n), signs[:, None]), torch.kron(torch.eye(n), torch.ones(1, 2))


ABSOLUTE = Answers(
    right=[absolute((1, -1), (1, 1)), absolute((-2, 4), (0.5, 0.25)), interleaved],
    wrong=[
        (absolute((1, -1), (1, -1)), "this is x"),
        (absolute((1, 1), (1, 0)), "one neuron has to see -x"),
        (absolute((1, 1), (1, 1)), "negative ones not at all"),
        (absolute((-1, -1), (0, 1)), "one neuron has to see +x"),
        (absolute((1, -1), (2, 2)), "twice |x|"),
        (absolute((1, -1), (-1, -1)), "minus |x|"),
        (lambda n: (torch.eye(n), torch.eye(n)), "wrong shape"),
        (lambda n: (absolute((1, -1), (1, 1))(n)[0], torch.ones(n, 2 * n)), "reads its own two neurons"),
        (lambda n: absolute((1, -1), (1, 1))(n)[0], "a pair (W_in, W_out)"),
    ],
)

# 2.10 evidence

JUDGED = {
    "a": "cannot tell",
    "b": "superposition",
    "c": "no superposition",
    "d": "cannot tell",
    "e": "superposition",
    "f": "cannot tell",
}
JUDGEMENT = Answers(
    right=[JUDGED, dict(reversed(JUDGED.items()))],
    wrong=[
        (JUDGED | {"a": "superposition"}, "turned basis makes polysemantic neurons"),
        (JUDGED | {"b": "cannot tell"}, "whatever the basis"),
        (JUDGED | {"b": "no superposition"}, "at most four directions"),
        (JUDGED | {"c": "superposition"}, "only the basis of neurons is turned"),
        (JUDGED | {"c": "cannot tell"}, "does not depend on the basis"),
        (JUDGED | {"d": "superposition"}, "combinations of fewer features"),
        (JUDGED | {"e": "cannot tell"}, "whatever the basis"),
        (JUDGED | {"f": "no superposition"}, "look at the D_i"),
        (JUDGED | {"f": "superposition"}, "thirty orthogonal features"),
        (JUDGED | {"a": "maybe"}, "no such answer"),
        ({"a": "cannot tell"}, "entries"),
    ],
)

# 2.11 loss_gradient


def gradient(W, b, importance, x, *, factor=2.0, relu=True, parts=(1, 1), sign=1.0, divide=None, bias_too=True):
    h = x @ W.T
    y = h @ W + b
    e = factor * sign * importance * (torch.relu(y) - x) / (divide or x.numel())
    e = e * (y > 0) if relu else e
    return parts[0] * h.T @ e + parts[1] * (e @ W.T).T @ x, e.sum(0)


def gradient_by_autograd(W, b, importance, x):
    W, b = W.clone().requires_grad_(), b.clone().requires_grad_()
    (importance * (x - torch.relu(x @ W.T @ W + b)) ** 2).mean().backward()
    return W.grad, b.grad


GRADIENT = Answers(
    right=[
        gradient,
        gradient_by_autograd,
        lambda *a: [g.numpy() for g in gradient(*(t.double() for t in a))],
        lambda W, b, I, x: tuple(g[0] for g in loss_gradient(W[None], b[None], I[None], x[None])),
    ],
    wrong=[
        (lambda *a: gradient(*a, factor=1.0), "factor 2"),
        (lambda *a: gradient(*a, relu=False), "ReLU passes nothing on"),
        (lambda *a: gradient(*a, parts=(1, 0)), "reading in is missing"),
        (lambda *a: gradient(*a, parts=(0, 1)), "reading out is missing"),
        (lambda *a: gradient(*a, sign=-1.0), "the sign"),
        (lambda *a: gradient(*a, divide=1), "divide by both"),
        (lambda *a: gradient(*a, divide=len(a[3])), "mean over features"),
        (lambda *a: gradient(*a, divide=a[3].shape[1]), "mean over the batch"),
        (lambda W, b, I, x: gradient(W, b, torch.ones_like(I), x), "importance is missing"),
        (lambda *a: gradient(*a)[0], "a pair (grad_W, grad_b)"),
        (lambda *a: tuple(reversed(gradient(*a))), "wrong shape"),
    ],
)

BANK = {
    "sample_features": SAMPLE,
    "reconstruct": RECONSTRUCT,
    "interference": INTERFERENCE,
    "dimensions_per_feature": DIMENSIONS,
    "five_in_two": FIVE,
    "phase_boundary": BOUNDARY,
    "sample_exclusive": EXCLUSIVE,
    "plateau": PLATEAU,
    "absolute_value": ABSOLUTE,
    "evidence": JUDGEMENT,
    "loss_gradient": GRADIENT,
}
