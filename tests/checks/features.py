"""Chapter 11's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from interp_edu import features
from interp_edu.checks import features as check
from interp_edu.hooks import hooked
from tests.checks.bank import Answers

# 11.1 auroc


def by_pairs(x, truth):
    yes, no = x[truth][:, None], x[~truth][None]
    return ((yes > no).float() + 0.5 * (yes == no).float()).mean()


def by_ranks(x, truth):
    x, truth = x.double().numpy(), truth.numpy()
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]
    n = truth.sum()
    return (ranks[truth].sum() - n * (n + 1) / 2) / (n * (len(x) - n))


def by_trapezoids(x, truth):
    points = [(0.0, 0.0)]
    for t in sorted(set(x.tolist()), reverse=True):
        says = x >= t
        points.append(
            ((says & ~truth).sum().item() / (~truth).sum().item(), (says & truth).sum().item() / truth.sum().item())
        )
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


def by_steps(x, truth):
    """The ROC curve in the order of sorting, ties as they come."""
    order = x.argsort(stable=True)
    ranks = torch.empty(len(x))
    ranks[order] = torch.arange(1.0, len(x) + 1)
    n = truth.sum()
    return ((ranks[truth].sum() - n * (n + 1) / 2) / (n * (len(x) - n))).item()


def without_ties(x, truth):
    yes, no = x[truth][:, None], x[~truth][None]
    return (yes > no).sum() / (yes != no).sum().clamp(min=1)


def in_loops(x, truth):
    won = n = 0
    for a, true in zip(x.tolist(), truth.tolist(), strict=True):
        for b, other in zip(x.tolist(), truth.tolist(), strict=True):
            if true and not other:
                won, n = won + (a > b) + (a == b) / 2, n + 1
    return won / n


def by_signs(x, truth):
    x, truth = x.numpy(), truth.numpy()
    return np.array([(np.sign(x[truth][:, None] - x[~truth]).mean() + 1) / 2])


def at_all_thresholds(x, truth, thresholds=None):
    """The trapezoids below the ROC curve, from these thresholds."""
    x = x.double()
    thresholds = torch.linspace(float(x.min()), float(x.max()), 5) if thresholds is None else thresholds(x)
    tpr, fpr = (torch.stack([(x[side] >= t).double().mean() for t in thresholds]) for side in (truth, ~truth))
    return torch.trapezoid(tpr.flip(0), fpr.flip(0))


def by_chance(x, truth):
    yes, no = (x[side][torch.randint(int(side.sum()), (3000,))] for side in (truth, ~truth))
    return ((yes > no).float() + 0.5 * (yes == no).float()).mean()


def average_precision(x, truth):
    hits = truth[x.argsort(descending=True, stable=True)].float()
    return (hits * hits.cumsum(0) / torch.arange(1, len(x) + 1)).sum() / hits.sum()


def by_rank_sum(ranks, less=lambda n: n * (n + 1) / 2):
    def auroc(x, truth):
        n = int(truth.sum())
        return (ranks(x)[truth].sum() - less(n)) / (n * (len(x) - n))

    return auroc


def dense(x):
    return x.unique(return_inverse=True)[1] + 1


def midranks(x):
    return features.midranks(x[:, None])[:, 0]


AUROC = Answers(
    right=[
        by_pairs,
        by_ranks,
        by_trapezoids,
        in_loops,
        by_signs,
        by_rank_sum(midranks),
        lambda x, truth: by_pairs(x.half(), truth).item(),
        lambda x, truth: features.auroc(x[:, None], truth[None]),
        lambda x, truth: at_all_thresholds(x, truth, lambda x: [*x.unique(), 99]),
    ],
    wrong=[
        (lambda x, truth: (x[truth][:, None] > x[~truth][None]).float().mean(), "counts nothing"),
        (lambda x, truth: (x[truth][:, None] >= x[~truth][None]).float().mean(), "counts as won"),
        (lambda x, truth: by_pairs(x, ~truth), "exchanged"),
        (lambda x, truth: max(by_pairs(x, truth), 1 - by_pairs(x, truth)), "the larger of a and 1 - a"),
        (lambda x, truth: (by_pairs(x, truth) - 0.5).abs() + 0.5, "the larger of a and 1 - a"),
        (lambda x, truth: (by_pairs(x, truth) - 0.5).abs(), "distance from 1/2"),
        (lambda x, truth: 2 * by_pairs(x, truth) - 1, "2 AUROC - 1"),
        (lambda x, truth: ((x > 0) == truth).float().mean(), "accuracy"),
        (lambda x, truth: by_pairs((x > 0).float(), truth), "on or off"),
        (lambda x, truth: by_pairs(x[x > 0], truth[x > 0]), "left out"),
        (lambda x, truth: by_pairs(x, truth) * truth.sum() * (~truth).sum(), "not averaged"),
        (lambda x, truth: by_pairs(x, truth) * truth.sum() * (~truth).sum() / len(x) ** 2, "n squared"),
        (without_ties, "ties are left out"),
        (by_steps, "in the order in which they stand"),
        (by_rank_sum(lambda x: x.argsort(stable=True).argsort() + 1), "in the order in which they stand"),
        (by_rank_sum(dense), "share the mean of the ranks"),
        (by_rank_sum(lambda x: midranks(x) - 1), "begin with 0"),
        (by_rank_sum(midranks, lambda n: 0), "taken away"),
        (average_precision, "average precision"),
        (lambda x, truth: x[truth].mean() - x[~truth].mean(), "difference of the means"),
        (lambda x, truth: (x[truth] > x[~truth].mean()).float().mean(), "compared with the mean"),
        (by_chance, "near, but not it"),
        (lambda x, truth: at_all_thresholds(x, truth), "AUROC, "),
        (lambda x, truth: None, "None"),
        (lambda x, truth: (x[truth][:, None] > x[~truth][None]).float(), "wrong shape"),
    ],
)

# 11.2 f1_elsewhere


def f1(x, truth, t):
    says = x >= t
    return (2 * (says & truth).sum() / (says.sum() + truth.sum())).item()


def accuracy(x, truth, t):
    return ((x >= t) == truth).float().mean().item()


def precision(x, truth, t):
    return truth[x >= t].float().mean().item()


def best(x, truth, score=f1, tie=1):
    return max(sorted(set(x.tolist())), key=lambda t: (score(x, truth, t), tie * t))


def in_numpy(x_a, truth_a, x_b, truth_b):
    x_a, truth_a, x_b, truth_b = (v.numpy() for v in (x_a, truth_a, x_b, truth_b))
    thresholds = np.unique(x_a)[::-1]
    says = x_a[None] >= thresholds[:, None]
    scores = 2 * (says & truth_a).sum(1) / (says.sum(1) + truth_a.sum())
    says = x_b >= thresholds[scores.argmax()]
    return 2 * (says & truth_b).sum() / (says.sum() + truth_b.sum())


def by_precision_and_recall(x_a, truth_a, x_b, truth_b):
    def score(x, truth, t):
        hits = (x[truth] >= t).sum().item()
        if not hits:
            return 0.0
        p, r = hits / (x >= t).sum().item(), hits / truth.sum().item()
        return 2 * p * r / (p + r)

    top, at = -1.0, None
    for t in x_a.unique(sorted=True):
        if score(x_a, truth_a, t) >= top:
            top, at = score(x_a, truth_a, t), t
    return score(x_b, truth_b, at)


def in_loops_of_numbers(x_a, truth_a, x_b, truth_b):
    def score(x, truth, t):
        tp = fp = fn = 0
        for a, true in zip(x.tolist(), truth.tolist(), strict=True):
            tp, fp, fn = tp + (a >= t and true), fp + (a >= t and not true), fn + (a < t and true)
        return 2 * tp / (2 * tp + fp + fn)

    return score(x_b, truth_b, max((score(x_a, truth_a, t), t) for t in x_a.tolist())[1])


def by_module(x_a, truth_a, x_b, truth_b):
    t = features.best_threshold(x_a[:, None], truth_a[None])
    return features.f1_score(x_b[:, None] >= t, truth_b[None])


def recall(x, truth, t):
    return (x[truth] >= t).double().mean().item()


def youden(x, truth, t):
    return recall(x, truth, t) - recall(x, ~truth, t)


def f1_above(x, truth, t):
    return (2 * ((x > t) & truth).sum() / ((x > t).sum() + truth.sum())).item()


def half_way(x):
    values = x.unique()
    return (values[1:] + values[:-1]) / 2


def among(candidates):
    def f1_elsewhere(a, u, b, v):
        return f1(b, v, max(sorted(candidates(a, b).tolist()), key=lambda t: (f1(a, u, t), t)))

    return f1_elsewhere


F1_ELSEWHERE = Answers(
    right=[
        lambda a, u, b, v: f1(b, v, best(a, u)),
        in_numpy,
        lambda a, u, b, v: torch.tensor(f1(b.double(), v, best(a.double(), u))),
        by_precision_and_recall,
        in_loops_of_numbers,
        by_module,
        lambda a, u, b, v: f1(b.half(), v, best(a.half(), u)),
    ],
    wrong=[
        (lambda a, u, b, v: f1(a, u, best(a, u)), "judged on the half on which the threshold was chosen"),
        (lambda a, u, b, v: f1(b, v, best(b, v)), "chosen on the half on which it is judged"),
        (lambda a, u, b, v: f1(a, u, best(b, v)), "halves are exchanged"),
        (lambda a, u, b, v: f1(b, v, best(a, u, tie=-1)), "equally good thresholds the largest"),
        (lambda a, u, b, v: f1_above(b, v, best(a, u)), "`at least t` is >="),
        (lambda a, u, b, v: f1_above(b, v, best(a, u, f1_above)), "in choosing and in judging"),
        (lambda a, u, b, v: f1(b, v, best(a, u, accuracy)), "best accuracy"),
        (lambda a, u, b, v: f1(b, v, best(a, u, accuracy, tie=-1)), "best accuracy"),
        (lambda a, u, b, v: f1(b, v, best(a, u, precision)), "best precision"),
        (lambda a, u, b, v: f1(b, v, best(a, u, precision, tie=-1)), "best precision"),
        (lambda a, u, b, v: f1(b, v, best(a, u, recall)), "best recall"),
        (lambda a, u, b, v: f1(b, v, best(a, u, recall, tie=-1)), "best recall"),
        (lambda a, u, b, v: f1(b, v, best(a, u, youden)), "TPR - FPR"),
        (among(lambda a, b: b), "not of the other"),
        (among(lambda a, b: a[a > 0]), "0 is a candidate"),
        (among(lambda a, b: half_way(a)), "half-way"),
        (among(lambda a, b: torch.linspace(0, 1, 11)), "F1 on the other half"),
        (lambda a, u, b, v: f1_above(b, v, 0.0), "on or off"),
        (lambda a, u, b, v: accuracy(b, v, best(a, u)), "the accuracy there"),
        (lambda a, u, b, v: precision(b, v, best(a, u)), "the precision there"),
        (lambda a, u, b, v: recall(b, v, best(a, u)), "the recall there"),
        (
            lambda a, u, b, v: (precision(b, v, best(a, u)) + recall(b, v, best(a, u))) / 2,
            "mean of precision and recall",
        ),
        (lambda a, u, b, v: f1(b, v, best(a, u)) / 2, "without the 2"),
        (lambda a, u, b, v: f1(b, v, best(a, u)) / (2 - f1(b, v, best(a, u))), "both have a 2"),
        (lambda a, u, b, v: best(a, u), "the threshold itself"),
        (lambda a, u, b, v: torch.tensor([f1(b, v, t) for t in a.tolist()]), "wrong shape"),
        (lambda a, u, b, v: (best(a, u), f1(b, v, best(a, u))), "wrong shape"),
    ],
)

# 11.3 with_latent


def shifted(x, f, W_dec, latent, value, where):
    return x + ((value - f[..., latent]) * where)[..., None] * W_dec[latent]


def by_place(x, f, W_dec, latent, value, where):
    x = x.clone()
    for i, j in where.nonzero().tolist():
        x[i, j] += (value - f[i, j, latent]) * W_dec[latent]
    return x.double().numpy()


def by_reconstructions(x, f, W_dec, latent, value, where):
    changed = f.clone()
    changed[..., latent] = value
    return torch.where(where[..., None], x - f @ W_dec + changed @ W_dec, x)


def reconstructed(x, f, W_dec, latent, value, where):
    f = f.clone()
    f[..., latent] = value
    return torch.where(where[..., None], f @ W_dec, x)


def by_latents(x, f, W_dec, latent, value, where):
    f = f.clone()
    f[..., latent][where] = value
    return f


def others_off(x, f, W_dec, latent, value, where):
    alone = torch.zeros_like(f)
    alone[..., latent] = value
    return x + where[..., None] * ((alone - f) @ W_dec)


def by_einsum(x, f, W_dec, latent, value, where):
    step = torch.full_like(f[..., latent], value) - f[..., latent]
    return x.double() + torch.einsum("bp,d->bpd", (step * where.float()).double(), W_dec[latent].double())


def by_indexing(x, f, W_dec, latent, value, where):
    new = x.clone()
    new[where] += (value - f[where][:, [latent]]) @ W_dec[[latent]]
    return new


def by_all_latents(x, f, W_dec, latent, value, where):
    new = f.clone()
    new[..., latent][where] = value
    return (x - f @ W_dec) + new @ W_dec


def in_place(x, f, W_dec, latent, value, where):
    x += ((value - f[..., latent]) * where)[..., None] * W_dec[latent]
    return x


def f_in_place(x, f, W_dec, latent, value, where):
    error = x - f @ W_dec
    f[..., latent] = torch.where(where, value, f[..., latent])
    return f @ W_dec + error


def change(step, row=lambda W, k: W[k]):
    """The change is step(x, f, W, k, v), along this row."""

    def with_latent(x, f, W, k, v, where):
        return x + (step(x, f, W, k, v) * where)[..., None] * row(W, k)

    return with_latent


def unit(W, k):
    return F.normalize(W, dim=1)[k]


WITH_LATENT = Answers(
    right=[shifted, by_place, by_reconstructions, by_einsum, by_indexing, by_all_latents],
    wrong=[
        (reconstructed, "the error"),
        (
            lambda x, f, W, k, v, where: torch.where(where[..., None], reconstructed(x, f, W, k, v, where), f @ W),
            "error is to stay",
        ),
        (lambda x, f, W, k, v, where: reconstructed(x, f, W, k, v, torch.ones_like(where)), "error is to stay"),
        (change(lambda x, f, W, k, v: v), "was not taken away"),
        (change(lambda x, f, W, k, v: f[..., k] - v), "the sign"),
        (change(lambda x, f, W, k, v: (v - f[..., k]) * (f[..., k] > 0)), "one that is off"),
        (change(lambda x, f, W, k, v: v - f[..., k], unit), "was normalised"),
        (change(lambda x, f, W, k, v: v - x @ W[k]), "x's own part"),
        (change(lambda x, f, W, k, v: v - x @ unit(W, k), unit), "x's own part"),
        (change(lambda x, f, W, k, v: -f[..., k]), "was ablated"),
        (change(lambda x, f, W, k, v: (v - 1) * f[..., k]), "multiplied by value"),
        (change(lambda x, f, W, k, v: v - f[..., k], lambda W, k: W[:, k]), "a column of W_dec"),
        (lambda x, f, W, k, v, where: shifted(x, f, W, k, v, torch.ones_like(where)), "changed everywhere"),
        (lambda x, f, W, k, v, where: shifted(x, f, W, k, v, ~where), "where `where` is false"),
        (lambda x, f, W, k, v, where: shifted(x, f, W, k, v, where) * where[..., None], "x is to stay there"),
        (lambda x, f, W, k, v, where: shifted(x, f, W, k, v, where[:1]), "the first row's"),
        (lambda x, f, W, k, v, where: x + (v - f[..., [k]]) * W[k] * where, "an axis is missing"),
        (lambda x, f, W, k, v, where: x + (v - f[..., k]) * W[k] * where[..., None], "an axis is missing"),
        (lambda x, f, W, k, v, where: x + (v - f[..., k]) * W[k] * where, "an axis is missing"),
        (others_off, "other latents were switched off"),
        (in_place, "x was changed"),
        (f_in_place, "f was changed"),
        (lambda x, f, W, k, v, where: shifted(x, f, W, k, v, where) - x, "add it to x"),
        (lambda x, f, W, k, v, where: x, "nothing was changed"),
        (by_latents, "return activations"),
        (lambda x, f, W, k, v, where: torch.where(where[..., None], f, 0 * f)[..., :2], "wrong shape"),
        (lambda x, f, W, k, v, where: None, "None"),
    ],
)

# 11.4 draw


def drawn(shards, size, generator):
    ends = torch.tensor([len(s) for s in shards]).cumsum(0)
    chosen = torch.randint(int(ends[-1]), (size,), generator=generator)
    which = torch.bucketize(chosen, ends, right=True)
    batch = torch.empty(size, shards[0].shape[1])
    for i, shard in enumerate(shards):
        batch[which == i] = shard[chosen[which == i] - int(ends[i]) + len(shard)]
    return batch


def by_weights(shards, size, generator):
    lengths = torch.tensor([float(len(s)) for s in shards])
    which = torch.multinomial(lengths, size, replacement=True, generator=generator)
    u = torch.rand(size, generator=generator, dtype=torch.float64)
    return torch.stack([shards[i][int(v * len(shards[i]))] for i, v in zip(which.tolist(), u.tolist(), strict=True)])


def one_by_one(shards, size, generator):
    total = sum(map(len, shards))
    rows = []
    for k in torch.randint(total, (size,), generator=generator).tolist():
        for shard in shards:
            if k < len(shard):
                rows.append(shard[k].tolist())
                break
            k -= len(shard)
    return rows


def shard_first(shards, size, generator):
    which = torch.randint(len(shards), (size,), generator=generator).tolist()
    return torch.stack([shards[i][torch.randint(len(shards[i]), (), generator=generator)] for i in which])


def in_a_run(shards, size, generator):
    rows = torch.cat(shards)
    start = int(torch.randint(len(rows), (), generator=generator))
    return rows[(torch.arange(size) + start) % len(rows)]


def first_shard(shards, size, generator):
    return shards[0][torch.randint(len(shards[0]), (size,), generator=generator)]


def without_last_rows(shards, size, generator):
    return drawn([shard[:-1] if len(shard) > 2 else shard for shard in shards], size, generator)


def unseeded(shards, size, generator):
    return drawn(shards, size, torch.Generator().manual_seed(int(torch.randint(10**6, ()))))


def own_seed(shards, size, generator):
    return drawn(shards, size, torch.Generator().manual_seed(0))


def permuted(shards, size, generator):
    rows = torch.cat(shards)
    many = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(size // len(rows) + 1)]
    return torch.cat(many)[:size]


def permuted_once(shards, size, generator):
    rows = torch.cat(shards)
    return rows[torch.randperm(len(rows), generator=generator)[:size]]


def by_weights_once(shards, size, generator):
    return torch.cat(shards)[torch.multinomial(torch.ones(sum(map(len, shards))), size, generator=generator)]


def seeded_again(shards, size, generator):
    return drawn(shards, size, generator.manual_seed(generator.initial_seed()))


def cloned(shards, size, generator):
    return drawn(shards, size, torch.Generator().manual_seed(generator.initial_seed()))


def seeded(shards, size, generator):
    return drawn(shards, size, generator.manual_seed(0))


def rows_of(shard, n, generator):
    return shard[torch.randint(len(shard), (n,), generator=generator)]


def in_proportion(shards, size, generator, shuffle=True):
    """A fixed number from each shard."""
    ends = torch.tensor([0, *(len(s) for s in shards)]).cumsum(0) * size // sum(map(len, shards))
    parts = [rows_of(s, int(n), generator) for s, n in zip(shards, ends.diff(), strict=True)]
    order = torch.randperm(size, generator=generator) if shuffle else torch.arange(size)
    return torch.cat(parts)[order]


def shard_by_shard(shards, size, generator, shuffle=False):
    """The right number from each shard, by chance; not in random order."""
    lengths = torch.tensor([float(len(s)) for s in shards])
    n = torch.bincount(torch.multinomial(lengths, size, True, generator=generator), minlength=len(shards))
    batch = torch.cat([rows_of(s, k, generator) for s, k in zip(shards, n.tolist(), strict=True)])
    return batch[torch.randperm(size, generator=generator)] if shuffle else batch


def one_shard(shards, size, generator):
    lengths = torch.tensor([float(len(s)) for s in shards])
    return rows_of(shards[int(torch.multinomial(lengths, 1, generator=generator))], size, generator)


def one_sample(shards, size, generator):
    return drawn(shards, 1, generator).repeat(size, 1)


def sorted_numbers(shards, size, generator):
    ends = [0, *itertools.accumulate(map(len, shards))]
    chosen = torch.randint(ends[-1], (size,), generator=generator).sort().values.tolist()
    which = [next(i for i, e in enumerate(ends[1:]) if k < e) for k in chosen]
    return torch.stack([shards[i][k - ends[i]] for i, k in zip(which, chosen, strict=True)])


def by_rounding(shards, size, generator):
    lengths = torch.tensor([float(len(s)) for s in shards])
    which = torch.multinomial(lengths, size, True, generator=generator)
    row = (torch.rand(size, generator=generator) * (lengths[which] - 1)).round().long()
    return torch.stack([shards[i][k] for i, k in zip(which.tolist(), row.tolist(), strict=True)])


def without_first_rows(shards, size, generator):
    return drawn([shard[1:] if len(shard) > 2 else shard for shard in shards], size, generator)


def by_numpy(shards, size, generator):
    return drawn(shards, size, torch.Generator().manual_seed(int(np.random.default_rng().integers(2**40))))


def together(cat):
    def draw(shards, size, generator):
        rows = cat(shards)
        return rows[torch.randint(len(rows), (size,), generator=generator)]

    return draw


def filled(shards):
    rows = torch.empty(sum(map(len, shards)), shards[0].shape[1])
    start = 0
    for shard in shards:
        rows[start : start + len(shard)] = shard
        start += len(shard)
    return rows


def grown(shards):
    rows = shards[0]
    for shard in shards[1:]:
        rows = torch.cat([rows, shard])
    return rows


def reordered(shards, size, generator):
    """Drawn rows of all shards put together, and into the order in which they were drawn."""
    ends = torch.tensor([len(s) for s in shards]).cumsum(0)
    chosen = torch.randint(int(ends[-1]), (size,), generator=generator)
    which = torch.searchsorted(ends, chosen, right=True)
    parts = [shard[chosen[which == i] - (ends[i] - len(shard))] for i, shard in enumerate(shards)]
    order = torch.cat([(which == i).nonzero()[:, 0] for i in range(len(shards))])
    return torch.cat(parts)[order.argsort()]


def in_place_of(shards, size, generator):
    """By pairs of shard and row, in numpy."""
    places = [(i, j) for i, shard in enumerate(shards) for j in range(len(shard))]
    numbers = torch.randint(0, len(places), (size,), generator=generator).numpy()
    return np.stack([shards[places[k][0]][places[k][1]].double().numpy() for k in numbers])


def rejecting(shards, size, generator):
    """A shard and a row of the longest; drawn again if the shard is not so long."""
    rows, longest = [], max(map(len, shards))
    while len(rows) < size:
        i, j = (torch.randint(n, (size,), generator=generator).tolist() for n in (len(shards), longest))
        rows += [shards[a][b] for a, b in zip(i, j, strict=True) if b < len(shards[a])]
    return torch.vstack(rows[:size])


def by_lists(shards, size, generator):
    lengths = [len(shard) for shard in shards]
    rng = np.random.default_rng(int(torch.randint(2**60, (), generator=generator)))
    which = rng.choice(len(shards), size, p=np.array(lengths) / sum(lengths))
    return [shards[i][rng.integers(lengths[i])].tolist() for i in which]


def mixed_dimensions(shards, size, generator):
    return torch.cat([drawn(shards, size, generator)[:, :1], drawn(shards, size, generator)[:, 1:]], dim=1)


DRAW = Answers(
    right=[
        drawn,
        by_weights,
        one_by_one,
        reordered,
        in_place_of,
        rejecting,
        by_lists,
        lambda *given: shard_by_shard(*given, shuffle=True),
    ],
    wrong=[
        (shard_first, "a shard was drawn first"),
        (first_shard, "only one of the shards"),
        (one_shard, "comes from one shard"),
        (in_proportion, "a fixed number for each shard"),
        (lambda *given: in_proportion(*given, shuffle=False), "a fixed number for each shard"),
        (shard_by_shard, "in the order of their shards"),
        (sorted_numbers, "nothing sorted"),
        (in_a_run, "batches without repeats"),
        (one_sample, "one, over and over"),
        (without_last_rows, "the last row of a shard never comes"),
        (without_first_rows, "the first row of a shard never comes"),
        (by_rounding, "half as often"),
        (unseeded, "the same generator"),
        (by_numpy, "the same generator"),
        (own_seed, "another generator"),
        (seeded, "another generator"),
        (seeded_again, "set back to its seed"),
        (cloned, "set back to its seed"),
        (permuted, "without replacement"),
        (permuted_once, "without replacement"),
        (by_weights_once, "without replacement"),
        (mixed_dimensions, "every row is a sample"),
        (together(torch.cat), "not put together"),
        (together(torch.vstack), "not put together"),
        (together(filled), "not put together"),
        (together(grown), "not put together"),
        (together(lambda shards: torch.from_numpy(np.concatenate([s.numpy() for s in shards]))), "not put together"),
        (
            together(lambda shards: torch.tensor(np.array([row for s in shards for row in s.numpy()]))),
            "not put together",
        ),
        (lambda shards, size, generator: drawn(shards, size, generator).T, "transposed"),
        (lambda shards, size, generator: drawn(shards, size, generator).squeeze(), "keep the axis"),
        (lambda shards, size, generator: drawn(shards, size + 1, generator), "wrong shape"),
        (lambda shards, size, generator: drawn(shards, len(shards), generator), "wrong shape"),
        (None, "expected a function"),
    ],
)

# 11.5 recovered


def share(clean, spliced, ablated):
    return (ablated - spliced) / (ablated - clean)


_LOSSES = {}


def recovering(combine=share, skip=(1, 1), *, instead=lambda given, x: given.expand_as(x), leave=False):
    def recovered(model, site, sae, tokens, given):
        def loss(by=None, start=1):
            def hook(x, point):
                x[:, start:] = by(x[:, start:])

            with torch.no_grad(), hooked(model, [(site, hook)] if by else []):
                logits = model(tokens)[:, :-1]
            return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

        if leave:
            model.attached.setdefault(site, []).append(lambda x, point: x)
        key = sae, skip, instead  # the check gives the same sae to all answers
        if leave or key not in _LOSSES:
            _LOSSES[key] = loss(), loss(sae, skip[0]), loss(lambda x: instead(given, x), skip[1])
        return combine(*_LOSSES[key])

    return recovered


def with_log_softmax(model, site, sae, tokens, given):
    def loss(by):
        def hook(x, point):
            return torch.cat([x[:, :1], by(x[:, 1:])], dim=1)

        with torch.no_grad(), hooked(model, [(site, hook)]):
            log_p = model(tokens).double().log_softmax(-1)[:, :-1]
        return -log_p.gather(-1, tokens[:, 1:, None]).mean().item()

    clean, spliced, ablated = loss(lambda x: x), loss(sae), loss(lambda x: given.expand_as(x))
    return 1 - (spliced - clean) / (ablated - clean)


def predicting(logits=slice(0, -1), tokens=slice(1, None), combine=share, **how):
    """Losses in which these logits are to predict these tokens; how: reduction, or whether to take exp."""

    def recovered(model, site, sae, words, given):
        def loss(by=None):
            def hook(x, point):
                x[:, 1:] = by(x[:, 1:])

            with torch.no_grad(), hooked(model, [(site, hook)] if by else []):
                found = model(words)[:, logits]
            if how.get("accuracy"):
                return -(found.argmax(-1) == words[:, tokens]).float().mean()
            nats = F.cross_entropy(
                found.flatten(0, 1), words[:, tokens].flatten(), reduction=how.get("reduction", "mean")
            )
            return nats.exp() if how.get("exp") else nats

        return combine(loss(), loss(sae), loss(lambda x: given))

    return recovered


def by_features(model, site, sae, tokens, given):
    clean, spliced, ablated = (
        features.losses(model, tokens, site, hook) for hook in (None, features.replaced(sae), features.replaced(given))
    )
    return (spliced - ablated) / (clean - ablated)


def row_by_row(model, site, sae, tokens, given):
    """One row at a time, hooks attached by hand, in numbers."""

    def loss(row, by):
        def hook(x, point):
            new = by(x)
            new[:, 0] = x[:, 0]
            return new

        with hooked(model, [(site, hook)]):
            log_p = model(row[None])[0].log_softmax(-1)
        return sum(-log_p[i, word].item() for i, word in enumerate(row[1:].tolist()))

    clean, spliced, ablated = (
        sum(loss(row, by) for row in tokens)
        for by in (lambda x: x.clone(), lambda x: sae(x), lambda x: given.repeat(*x.shape[:2], 1))
    )
    return np.float64((ablated - spliced) / (ablated - clean))


RECOVERED = Answers(
    right=[
        recovering(),
        with_log_softmax,
        by_features,
        row_by_row,
        predicting(reduction="sum"),
        predicting(slice(1, -1), slice(2, None)),  # what predicts word 1 is left alone, and cancels
    ],
    wrong=[
        (recovering(lambda c, s, a: (s - c) / (a - c)), "the share that is lost"),
        (recovering(lambda c, s, a: share(c, s, a).clamp(0, 1)), "leave it so"),
        (recovering(lambda c, s, a: max(0.0, min(1.0, share(c, s, a).item()))), "leave it so"),
        (recovering(lambda c, s, a: share(c, s, a).abs()), "this is its size"),
        (recovering(lambda c, s, a: (a - s) / a), "a share of the ablated loss"),
        (recovering(lambda c, s, a: (a - s) / c), "a share of the clean loss"),
        (recovering(lambda c, s, a: c / s), "the clean loss as a share"),
        (recovering(lambda c, s, a: a - s), "divide by what the ablation costs"),
        (recovering(lambda c, s, a: s), "the loss with the SAE"),
        (recovering(lambda c, s, a: (a - s) / (s - c)), "clean over ablated"),
        (recovering(skip=(0, 0)), "position 0 was replaced as well"),
        (recovering(skip=(0, 1)), "by the SAE as well"),
        (recovering(skip=(1, 0)), "position 0 was ablated"),
        (recovering(instead=lambda given, x: 0 * x), "zero stood in"),
        (
            lambda model, site, sae, tokens, given: recovering()(model, site, lambda x: x + sae(x), tokens, given),
            "the reconstruction was added",
        ),
        (recovering(leave=True), "no hook stays attached"),
        (predicting(slice(-2, -1), slice(-1, None)), "the last prediction only"),
        (predicting(slice(None), slice(None)), "own logits"),
        (predicting(slice(1, None), slice(0, -1)), "the wrong way"),
        (predicting(exp=True), "perplexity"),
        (predicting(accuracy=True), "the share recovered"),
        (lambda *given: None, "None"),
    ],
)

# 11.6 conjunctions


def wired(scale=1.0, bias=-1.0, rows=lambda words, roles, i, j: words[i] + roles[j]):
    def conjunctions(words, roles, pairs):
        W = torch.stack([rows(words, roles, i, j) for i, j in pairs])
        return {"W_enc": scale * W.T, "b_enc": torch.full((len(pairs),), bias)}

    return conjunctions


def steeper(words, roles, pairs):
    """Right: with the other words and roles pushed down, which changes nothing for what is asked."""
    W = torch.stack([1.5 * words[i] + 1.5 * roles[j] - 0.5 * (words.sum(0) - words[i]) for i, j in pairs])
    return {"W_enc": W.T.double().numpy(), "b_enc": [-2.0] * len(pairs)}


def in_words_order(words, roles, pairs):
    """Latents sorted by word and role."""
    return wired()(words, roles, sorted(pairs, reverse=True))


def for_all_pairs(words, roles, pairs):
    return wired()(words, roles, list(itertools.product(range(len(words)), range(len(roles)))))


def filled_by_columns(words, roles, pairs):
    W = torch.zeros(words.shape[1], len(pairs), dtype=torch.float64)
    for k, (i, j) in enumerate(pairs):
        W[:, k] += words[i]
        W[:, k] += roles[j]
    return {"W_enc": W, "b_enc": torch.full((len(pairs),), -1)}


def with_one_hots(words, roles, pairs):
    i, j = (list(side) for side in zip(*pairs, strict=True))
    return {"b_enc": -np.ones(len(pairs)), "W_enc": (words[i] + roles[j]).numpy().T}


CONJUNCTIONS = Answers(
    right=[
        wired(),
        steeper,
        lambda *given: {k: v.double() for k, v in wired()(*given).items()},
        filled_by_columns,
        with_one_hots,
        wired(2.0, -3.0),
    ],
    wrong=[
        (wired(bias=0.0), "reach more than 1"),
        (wired(0.5, 0.0), "for one of the two as well"),
        (wired(bias=-2.0), "holds it down too much"),
        (wired(bias=-1.5), "reach less than 1"),
        (wired(bias=-0.5), "reach more than 1"),
        (wired(bias=1.0), "a bias above 0"),
        (wired(rows=lambda words, roles, i, j: words[i]), "holds it down too much"),
        (wired(bias=0.0, rows=lambda words, roles, i, j: words[i]), "for one of the two as well"),
        (wired(bias=0.0, rows=lambda words, roles, i, j: words[i] * roles[j]), "latent of word"),
        (wired(0.5, 0.5), "a bias above 0"),
        (wired(0.0, 1.0), "without its word and its role"),
        (wired(2.0, -2.0), "reach more than 1"),
        (wired(rows=lambda words, roles, i, j: words[i] - roles[j]), "holds it down too much"),
        (lambda words, roles, pairs: wired()(words, roles, pairs[::-1]), "in another order"),
        (in_words_order, "in another order"),
        (for_all_pairs, "W_enc"),
        (lambda words, roles, pairs: wired()(words, roles, pairs)["W_enc"], "W_enc"),
        (lambda words, roles, pairs: {"W_enc": wired()(words, roles, pairs)["W_enc"]}, "b_enc"),
        (
            lambda words, roles, pairs: {k: v.T if v.ndim == 2 else v for k, v in wired()(words, roles, pairs).items()},
            "W_enc",
        ),
    ],
)

# 11.7 best_latent


def choosing(choose, judge):
    """Chosen and judged on the words that these two functions of `asked` and `first` give."""

    def best_latent(f, truth, asked, first):
        a, b = choose(asked, first), judge(asked, first)
        latent = int(features.auroc(f[a], truth[a][None])[0].argmax())
        return latent, features.auroc(f[b][:, [latent]], truth[b][None]).item()

    return best_latent


def best_of_both(f, truth, asked, first):
    latent = choosing(lambda a, b: a & b, lambda a, b: a & ~b)(f, truth, asked, first)[0]
    where = asked & ~first
    return latent, features.auroc(f[where], truth[where][None])[0].max().item()


def in_pairs(f, truth, asked, first):
    def score(i, where):
        return by_pairs(f[where, i], truth[where]).item()

    latent = max(range(f.shape[1]), key=lambda i: score(i, asked & first))
    return [latent, score(latent, asked & ~first)]


def early(asked, first):
    return asked & first


def late(asked, first):
    return asked & ~first


def everything(asked, first):
    return torch.ones_like(asked)


def by_rule(rule):
    """Chosen by a rule of the scores, the latents and the truth on the first half."""

    def best_latent(f, truth, asked, first):
        a, b = asked & first, asked & ~first
        latent = int(rule(features.auroc(f[a], truth[a][None])[0], f[a], truth[a]).argmax())
        return latent, features.auroc(f[b][:, [latent]], truth[b][None]).item()

    return best_latent


def masked(f, truth, asked, first):
    """Zeros where the variable is not asked, instead of leaving these words out."""
    return choosing(lambda a, b: b, lambda a, b: ~b)(f * asked[:, None], truth & asked, asked, first)


def masked_for_judging(f, truth, asked, first):
    latent = choosing(early, late)(f, truth, asked, first)[0]
    return latent, features.auroc((f * asked[:, None])[~first][:, [latent]], (truth & asked)[~first][None]).item()


def by_hand(f, truth, asked, first):
    """Rows first, then the halves; ranks by numpy."""
    f, truth, first = f[asked].double(), truth[asked], first[asked]
    scores = [by_ranks(column, truth[first]) for column in f[first].T]
    latent = np.argmax(scores)
    return np.array([latent, by_ranks(f[~first][:, latent], truth[~first])])


def with_all_scores(f, truth, asked, first):
    a, b = ((asked & half).nonzero().flatten() for half in (first, ~first))
    latent = features.auroc(f[a], truth[None, a])[0].max(0).indices
    return latent, features.auroc(f[b], truth[None, b])[0, latent]


BEST_LATENT = Answers(
    right=[choosing(early, late), in_pairs, by_hand, with_all_scores, lambda *given: torch.tensor(in_pairs(*given))],
    wrong=[
        (choosing(everything, everything), "among all words"),
        (choosing(lambda a, b: a, lambda a, b: a), "chosen on both halves"),
        (choosing(lambda a, b: a, late), "chosen on both halves"),
        (choosing(early, early), "judged on the half on which it was chosen"),
        (choosing(late, late), "chosen on the second half"),
        (choosing(late, early), "chosen on the second half"),
        (choosing(lambda a, b: b, lambda a, b: ~b), "among all words"),
        (choosing(lambda a, b: b, late), "among all words"),
        (choosing(early, lambda a, b: ~b), "not asked"),
        (choosing(early, lambda a, b: a), "judged on both halves"),
        (choosing(early, everything), "judged on all words"),
        (best_of_both, "that of another latent"),
        (by_rule(lambda scores, f, truth: (scores - 0.5).abs()), "farthest from 1/2"),
        (by_rule(lambda scores, f, truth: -scores), "far below 1/2"),
        (by_rule(lambda scores, f, truth: f[truth].mean(0)), "take the AUROC"),
        (by_rule(lambda scores, f, truth: f[truth].mean(0) - f[~truth].mean(0)), "take the AUROC"),
        (masked, "left out, not set to zero"),
        (masked_for_judging, "left out, not set to zero"),
        (
            lambda *given: (in_pairs(*given)[0], (in_pairs(*given)[1] + choosing(early, early)(*given)[1]) / 2),
            "mean of both",
        ),
        (lambda *given: (in_pairs(*given)[0], 1 - in_pairs(*given)[1]), "exchanged"),
        (lambda *given: in_pairs(*given)[::-1], "in this order"),
        (lambda *given: choosing(early, late)(*given)[1], "a latent and its AUROC"),
        (lambda *given: choosing(early, late)(*given)[0], "a latent and its AUROC"),
    ],
)

# 11.8 laura


_LATENT = check._ranking()[0][1]
_LAURA = {"latent": _LATENT, "own": check._changed("IO", _LATENT), "as_giver": check._changed("S2", _LATENT)}


def laura(**change):
    return _LAURA | change


def changed(role, of=lambda x: x.log_softmax(-1), **how):
    return check._changed(role, _LATENT, of, **how)


def of_answers(role):
    """The change of the answer's log probability."""
    answers = check._of_name(role)[1]
    after, before = (check._logits(role, latent).log_softmax(-1) for latent in (_LATENT, -1))
    return (after - before)[range(len(answers)), answers].mean()


LAURA = Answers(
    right=[
        laura(),
        {k: torch.tensor(v) for k, v in _LAURA.items()},
        {k: np.float32(v) for k, v in _LAURA.items()},
        {k: round(v, 2) for k, v in _LAURA.items()},
        {k: torch.tensor([v]) for k, v in _LAURA.items()},
    ],
    wrong=[
        (laura(latent=check._ranking("Mary")[0][1]), "Mary's"),
        (laura(latent=check._ranking("Tom")[0][1]), "Tom's"),
        (laura(latent=check._ranking()[-1][1]), "below 1/2"),
        (laura(latent=check._ranking(model=0, sae=0)[0][1]), "course model 0 with its own"),
        (laura(latent=check._ranking(sae=0)[0][1]), "the dictionary of course model 0"),
        (laura(latent=check._ranking()[1][1]), "whose AUROC is 0."),
        (laura(latent=0.98), "an index"),
        (laura(own=-_LAURA["own"]), "the sign"),
        (laura(as_giver=-_LAURA["as_giver"]), "the sign"),
        (laura(own=changed("IO", error=False)), "error is to stay"),
        (laura(as_giver=changed("S2", error=False)), "error is to stay"),
        (laura(own=changed("IO", everywhere=True)), "at all positions"),
        (laura(as_giver=changed("S2", everywhere=True)), "at all positions"),
        (laura(own=changed("IO", lambda x: x.softmax(-1))), "this is the probability"),
        (laura(own=changed("IO", lambda x: x)), "this is the logit"),
        (laura(as_giver=changed("S2", lambda x: x)), "this is the logit"),
        (laura(own=20 * _LAURA["own"]), "this is the sum"),
        (laura(as_giver=of_answers("S2")), "log P(the answer)"),
        (laura(own=_LAURA["as_giver"]), "other sentences"),
        (laura(own=0.0), "nothing was changed"),
        (laura(as_giver=0.0), "nothing was changed"),
        (laura(own=[-4.4, -4.5]), "wrong shape"),
        (laura(own=None), "own is None"),
        ({"latent": _LATENT, "own": _LAURA["own"]}, "a dictionary with"),
        (laura(own=...), "still `...`"),
    ],
)

# 11.9 learned

_SCORES = {f"{kind} {what}": check._scores(kind, what) for kind in check.KINDS for what in ("word", "name")}
_FOUND = {name: scores["F1"].median().item() for name, scores in _SCORES.items()}


def learned(**change):
    return _FOUND | {name.replace("_", " "): value for name, value in change.items()}


def scored(take, score="F1", **how):
    """All four numbers, by another statistic of another score."""
    return {name: take(check._scores(*name.split(), **how)[score]).item() for name in _SCORES}


LEARNED = Answers(
    right=[
        learned(),
        {k: torch.tensor(v + 0.01) for k, v in _FOUND.items()},
        {k: round(v, 2) for k, v in _FOUND.items()},
        {name: np.median(scores["F1"].numpy()) for name, scores in _SCORES.items()},
        {name: float(scores["F1"].double().quantile(0.5)) for name, scores in _SCORES.items()},
    ],
    wrong=[
        (learned(trained_word=_FOUND["untrained word"], untrained_word=_FOUND["trained word"]), "exchanged"),
        (learned(trained_word=_FOUND["trained name"], trained_name=_FOUND["trained word"]), "word and name"),
        (learned(untrained_name=_FOUND["trained name"]), "exchanged"),
        (learned(untrained_name=_FOUND["untrained word"]), "word and name"),
        ({name: _FOUND[name.replace("un", "")] for name in _FOUND}, "one model or one dictionary"),
        (scored(torch.mean), "the mean"),
        (scored(torch.max), "the largest"),
        (scored(torch.min), "the smallest"),
        (scored(torch.median, "AUROC"), "the AUROC"),
        (scored(torch.mean, "AUROC"), "the mean AUROC"),
        (scored(torch.median, "here"), "judged on the first half"),
        (scored(torch.median, "here", early=False), "on the second half, where they are judged"),
        (learned(trained_name=check._scores("trained", "name", "untrained")["F1"].median()), "of the other model"),
        (learned(untrained_word=check._scores("untrained", "word", "trained")["F1"].median()), "of the other model"),
        (learned(untrained_word=80.0), "between 0 and 1"),
        (learned(trained_word=0.3), "through its own dictionary"),
        (learned(trained_word=_SCORES["trained word"]["F1"]), "wrong shape"),
        (learned(trained_word=None), "trained word is None"),
        ({"trained word": 0.6}, "a dictionary with"),
        (learned(trained_word=...), "still `...`"),
    ],
)

# 11.10 verdicts

TRUE = {"b", "e", "g", "h"}
VERDICTS = Answers(
    right=[
        {name: name in TRUE for name in "abcdefghi"},
        {name: str(name in TRUE) for name in "abcdefghi"},
        {name: np.bool_(name in TRUE) for name in "abcdefghi"},
    ],
    wrong=[
        *(({n: (n in TRUE) != (n == flipped) for n in "abcdefghi"}, f"statement {flipped}") for flipped in "abcdefghi"),
        (dict.fromkeys("abcdefghi", True), "statement a"),
        ({"a": False}, "one judgement for each"),
    ],
)

BANK = {
    "auroc": AUROC,
    "f1_elsewhere": F1_ELSEWHERE,
    "with_latent": WITH_LATENT,
    "draw": DRAW,
    "recovered": RECOVERED,
    "conjunctions": CONJUNCTIONS,
    "best_latent": BEST_LATENT,
    "laura": LAURA,
    "learned": LEARNED,
    "verdicts": VERDICTS,
}
