"""Chapter 11's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import functools
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


AUROC = Answers(
    right=[by_pairs, by_ranks, by_trapezoids],
    wrong=[
        (lambda x, truth: (x[truth][:, None] > x[~truth][None]).float().mean(), "counts nothing"),
        (lambda x, truth: (x[truth][:, None] >= x[~truth][None]).float().mean(), "counts as won"),
        (lambda x, truth: by_pairs(x, ~truth), "AUROC, "),
        (lambda x, truth: ((x > 0) == truth).float().mean(), "AUROC, "),
        (lambda x, truth: by_pairs(x, truth) * truth.sum() * (~truth).sum(), "not averaged"),
        (without_ties, "AUROC, "),
        (by_steps, "AUROC, "),
        (lambda x, truth: x[truth].mean() - x[~truth].mean(), "AUROC"),
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


F1_ELSEWHERE = Answers(
    right=[
        lambda a, u, b, v: f1(b, v, best(a, u)),
        in_numpy,
        lambda a, u, b, v: torch.tensor(f1(b.double(), v, best(a.double(), u))),
    ],
    wrong=[
        (lambda a, u, b, v: f1(a, u, best(a, u)), "F1 on the other half"),
        (lambda a, u, b, v: f1(b, v, best(b, v)), "F1 on the other half"),
        (lambda a, u, b, v: f1(a, u, best(b, v)), "F1 on the other half"),
        (lambda a, u, b, v: accuracy(b, v, best(a, u)), "F1 on the other half"),
        (lambda a, u, b, v: f1(b, v, best(a, u, accuracy)), "F1 on the other half"),
        (lambda a, u, b, v: f1(b, v, best(a, u, precision)), "F1 on the other half"),
        (lambda a, u, b, v: f1(b, v, best(a, u)) / 2, "F1 on the other half"),
        (lambda a, u, b, v: f1(b, v, best(a, u)) / (2 - f1(b, v, best(a, u))), "F1 on the other half"),
        (lambda a, u, b, v: best(a, u), "F1 on the other half"),
        (lambda a, u, b, v: torch.tensor([f1(b, v, t) for t in a.tolist()]), "wrong shape"),
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


def others_off(x, f, W_dec, latent, value, where):
    alone = torch.zeros_like(f)
    alone[..., latent] = value
    return x + where[..., None] * ((alone - f) @ W_dec)


WITH_LATENT = Answers(
    right=[shifted, by_place, by_reconstructions],
    wrong=[
        (reconstructed, "the error"),
        (lambda x, f, W, k, v, where: x + v * where[..., None] * W[k], "was not taken away"),
        (lambda x, f, W, k, v, where: x - (shifted(x, f, W, k, v, where) - x), "the sign"),
        (lambda x, f, W, k, v, where: shifted(x, f, W, k, v, torch.ones_like(where)), "changed everywhere"),
        (lambda x, f, W, k, v, where: shifted(x, f, W, k, v, ~where), "where `where` is false"),
        (others_off, "other latents were switched off"),
        (lambda x, f, W, k, v, where: shifted(x, f, W, k, v, where) - x, "add it to x"),
        (lambda x, f, W, k, v, where: x, "nothing was changed"),
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


def mixed_dimensions(shards, size, generator):
    rows = torch.cat(shards)
    which = torch.randint(len(rows), (size, rows.shape[1]), generator=generator)
    return rows.gather(0, which)


DRAW = Answers(
    right=[drawn, by_weights, one_by_one],
    wrong=[
        (shard_first, "a shard was drawn first"),
        (first_shard, "only the first shard"),
        (in_a_run, "with replacement"),
        (without_last_rows, "get their share"),
        (unseeded, "the same generator"),
        (own_seed, "another generator"),
        (permuted, "with replacement"),
        (mixed_dimensions, "every row is a sample"),
        (lambda shards, size, generator: drawn(shards, size, generator).T, "wrong shape"),
        (lambda shards, size, generator: drawn(shards, size + 1, generator), "wrong shape"),
    ],
)

# 11.5 recovered


def share(clean, spliced, ablated):
    return (ablated - spliced) / (ablated - clean)


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
        return combine(loss(), loss(sae, skip[0]), loss(lambda x: instead(given, x), skip[1]))

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


RECOVERED = Answers(
    right=[recovering(), with_log_softmax],
    wrong=[
        (recovering(lambda c, s, a: (s - c) / (a - c)), "the share that is lost"),
        (recovering(lambda c, s, a: (a - s) / a), "a share of the ablated loss"),
        (recovering(lambda c, s, a: (a - s) / c), "a share of the clean loss"),
        (recovering(lambda c, s, a: a - s), "divide by what the ablation costs"),
        (recovering(lambda c, s, a: s), "the loss with the SAE"),
        (recovering(skip=(0, 0)), "position 0 was replaced as well"),
        (recovering(skip=(0, 1)), "by the SAE as well"),
        (recovering(skip=(1, 0)), "position 0 was ablated"),
        (recovering(leave=True), "no hook stays attached"),
        (recovering(lambda c, s, a: (a - s) / (s - c)), "clean over ablated"),
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


CONJUNCTIONS = Answers(
    right=[wired(), steeper, lambda *given: {k: v.double() for k, v in wired()(*given).items()}],
    wrong=[
        (wired(bias=0.0), "latent of word"),
        (wired(0.5, 0.0), "latent of word"),
        (wired(bias=-2.0), "holds it down too much"),
        (wired(bias=-0.5), "latent of word"),
        (wired(rows=lambda words, roles, i, j: words[i]), "latent of word"),
        (wired(0.5, 0.5), "latent of word"),
        (wired(2.0, -2.0), "latent of word"),
        (wired(rows=lambda words, roles, i, j: words[i] - roles[j]), "latent of word"),
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


BEST_LATENT = Answers(
    right=[choosing(early, late), in_pairs],
    wrong=[
        (choosing(everything, everything), "all words"),
        (choosing(early, early), "judged on the half on which it was chosen"),
        (choosing(late, late), "chosen on the second half"),
        (choosing(lambda a, b: b, lambda a, b: ~b), "among all words"),
        (choosing(early, lambda a, b: ~b), "not asked"),
        (choosing(early, lambda a, b: a), "judged on both halves"),
        (best_of_both, "that of another latent"),
        (lambda *given: choosing(early, late)(*given)[1], "a latent and its AUROC"),
        (lambda *given: choosing(early, late)(*given)[0], "a latent and its AUROC"),
    ],
)

# 11.8 laura


@functools.lru_cache
def _laura():
    latent = check._ranking()[0][1]
    return {"latent": latent, "own": check._changed("IO", latent), "as_giver": check._changed("S2", latent)}


def laura(**change):
    return _laura() | change


_ANOTHER = check._ranking("Mary")[0][1]
LAURA = Answers(
    right=[laura(), {k: torch.tensor(v) for k, v in laura().items()}, {k: np.float64(v) for k, v in laura().items()}],
    wrong=[
        (laura(latent=_ANOTHER), "the latent that tells best"),
        (laura(own=-laura()["own"]), "the sign"),
        (laura(as_giver=-laura()["as_giver"]), "the sign"),
        (laura(as_giver=check._changed("S2", _laura()["latent"], error=False)), "error is to stay"),
        (laura(own=laura()["as_giver"]), "other sentences"),
        (laura(own=0.0), "own"),
        (laura(as_giver=0.0), "as_giver"),
        ({"latent": laura()["latent"], "own": laura()["own"]}, "a dictionary with"),
        (laura(own=...), "still `...`"),
    ],
)

# 11.9 learned

_FOUND = {name: value for name, (value, _) in check._medians().items()}


def learned(**change):
    return _FOUND | {name.replace("_", " "): value for name, value in change.items()}


LEARNED = Answers(
    right=[learned(), {k: torch.tensor(v + 0.01) for k, v in _FOUND.items()}],
    wrong=[
        (learned(trained_word=_FOUND["untrained word"], untrained_word=_FOUND["trained word"]), "exchanged"),
        (learned(trained_name=_FOUND["trained word"] - 0.3, trained_word=_FOUND["trained name"] + 0.3), "median F1"),
        (learned(untrained_name=_FOUND["trained name"]), "exchanged"),
        (learned(trained_name=0.999), "AUROC"),
        (learned(untrained_word=80.0), "between 0 and 1"),
        (learned(untrained_name=_FOUND["untrained word"]), "word and name"),
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
