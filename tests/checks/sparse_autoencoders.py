"""Chapter 3's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from interp_edu import sparse_autoencoders as sa
from interp_edu.sae_training import remove_parallel, resample
from tests.checks.bank import Answers

relu = torch.relu

# 3.1 autoencoder


def coded(encode=lambda x, W_e, b_e, W_d, b_d: relu(x @ W_e.T + b_e), decode=lambda f, W_e, W_d, b_d: f @ W_d.T + b_d):
    def autoencoder(x, W_e, b_e, W_d, b_d):
        f = encode(x, W_e, b_e, W_d, b_d)
        return f, decode(f, W_e, W_d, b_d)

    return autoencoder


def sample_by_sample(x, W_e, b_e, W_d, b_d):
    """Right: plain Python, the formula as it stands, column by column."""
    x, W_e, b_e, W_d, b_d = (t.tolist() for t in (x, W_e, b_e, W_d, b_d))

    def affine(W, v, b):
        return [sum(w * a for w, a in zip(row, v, strict=True)) + c for row, c in zip(W, b, strict=True)]

    f = [[max(v, 0.0) for v in affine(W_e, row, b_e)] for row in x]
    return [f, [affine(W_d, row, b_d) for row in f]]


def with_columns(x, W_e, b_e, W_d, b_d):
    f = relu(W_e @ x.T + b_e[:, None])
    return f.T, (W_d @ f + b_d[:, None]).T


def in_numpy(x, W_e, b_e, W_d, b_d):
    x, W_e, b_e, W_d, b_d = (t.double().numpy() for t in (x, W_e, b_e, W_d, b_d))
    f = np.maximum(np.einsum("bd,md->bm", x, W_e) + b_e, 0)
    return f, np.einsum("bm,dm->bd", f, W_d) + b_d


def unseen(x, W_e, b_e, W_d, b_d):
    pre = x @ W_e.T + b_e
    return relu(pre), pre @ W_d.T + b_d


def in_place(x, W_e, b_e, W_d, b_d):
    x @= torch.eye(x.shape[1])
    f = F.linear(x, W_e, b_e).relu_()
    return f, F.linear(f, W_d, b_d)


AUTOENCODER = Answers(
    right=[
        coded(),
        sample_by_sample,
        with_columns,
        in_numpy,
        in_place,
        lambda x, W_e, b_e, W_d, b_d: (lambda s: (s.encode(x), s(x)))(sa.SAE(W_e.T, b_e, W_d.T, b_d)),
        coded(lambda x, W_e, b_e, W_d, b_d: ((x @ W_e.T + b_e) + (x @ W_e.T + b_e).abs()) / 2),
    ],
    wrong=[
        (coded(lambda x, W_e, b_e, W_d, b_d: relu(x @ W_e.T)), "b_e is missing"),
        (coded(lambda x, W_e, b_e, W_d, b_d: relu(x @ W_e.T) + b_e), "added after the ReLU"),
        (coded(lambda x, W_e, b_e, W_d, b_d: relu(x @ W_e.T - b_e)), "its sign is +"),
        (coded(lambda x, W_e, b_e, W_d, b_d: x @ W_e.T + b_e), "the ReLU is missing"),
        (coded(lambda x, W_e, b_e, W_d, b_d: relu((x - b_d) @ W_e.T + b_e)), "this formula does not"),
        (coded(lambda x, W_e, b_e, W_d, b_d: relu((x - b_d) @ W_e.T)), "f = ReLU"),
        (coded(lambda x, W_e, b_e, W_d, b_d: relu(x @ W_d + b_e)), "has weights of its own"),
        (coded(lambda x, W_e, b_e, W_d, b_d: (x @ W_e.T + b_e).abs()), "absolute value"),
        (coded(lambda x, W_e, b_e, W_d, b_d: torch.sigmoid(x @ W_e.T + b_e)), "a sigmoid"),
        (coded(lambda x, W_e, b_e, W_d, b_d: F.gelu(x @ W_e.T + b_e)), "f = ReLU(W_e x + b_e)"),
        (coded(lambda x, W_e, b_e, W_d, b_d: relu(x) @ W_e.T + b_e), "stands on x"),
        (coded(lambda x, W_e, b_e, W_d, b_d: relu(x @ W_e + b_e)), "W_e is not transposed"),
        (coded(lambda x, W_e, b_e, W_d, b_d: relu(x @ W_e.T + b_d)), "b_e and b_d are exchanged"),
        (coded(lambda x, W_e, b_e, W_d, b_d: relu(b_e - x @ W_e.T)), "f = ReLU"),
        (coded(lambda x, W_e, b_e, W_d, b_d: F.normalize(relu(x @ W_e.T + b_e), p=1, dim=1)), "f = ReLU"),
        (lambda x, W_e, b_e, W_d, b_d: coded()(x, W_d, b_e, W_e, b_d), "W_e and W_d are exchanged"),
        (lambda *given: coded()(*given)[::-1], "the pair is (f, x_hat)"),
        (lambda *given: coded()(*given)[1], "the answer is (f, x_hat)"),
        (lambda *given: tuple(t.T for t in coded()(*given)), "rows are samples"),
        (coded(decode=lambda f, W_e, W_d, b_d: f @ W_d.T), "b_d is not added back"),
        (coded(decode=lambda f, W_e, W_d, b_d: f @ W_d.T - b_d), "b_d is subtracted"),
        (coded(decode=lambda f, W_e, W_d, b_d: relu(f @ W_d.T + b_d)), "no ReLU on the output"),
        (coded(decode=lambda f, W_e, W_d, b_d: relu(f @ W_d.T) + b_d), "x_hat = W_d f + b_d"),
        (coded(decode=lambda f, W_e, W_d, b_d: f @ W_e + b_d), "has weights of its own"),
        (coded(decode=lambda f, W_e, W_d, b_d: f @ F.normalize(W_d, dim=0).T + b_d), "not normalised here"),
        (coded(decode=lambda f, W_e, W_d, b_d: f @ W_d + b_d), "W_d is not transposed"),
        (unseen, "the ReLU has not seen"),
        (lambda x, *rest: (coded()(x, *rest)[0], x - coded()(x, *rest)[1]), "this is the error"),
        (lambda x, *rest: (coded()(x, *rest)[0], x + coded()(x, *rest)[1]), "nothing goes around"),
        (lambda *given: None, "is there a return"),
    ],
)

# 3.2 loss


def paid(
    error=lambda e: e.square().sum(1).mean(), penalty=lambda f: f.sum(1).mean(), weigh=lambda e, p, lam: e + lam * p
):
    return lambda x, x_hat, f, lam: weigh(error(x - x_hat), penalty(f), lam)


def added_up(x, x_hat, f, lam):
    """Right: sample by sample in plain Python."""
    total = 0.0
    for a, b, latents in zip(x.tolist(), x_hat.tolist(), f.tolist(), strict=True):
        total += sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) + lam * sum(latents)
    return total / len(x)


LOSS = Answers(
    right=[
        paid(),
        added_up,
        lambda x, x_hat, f, lam: sa.sae_loss(x, x_hat, f, lam),
        lambda x, x_hat, f, lam: np.mean(
            np.linalg.norm((x - x_hat).numpy(), axis=1) ** 2 + lam * np.abs(f.numpy()).sum(1)
        ),
        lambda x, x_hat, f, lam: F.mse_loss(x_hat, x, reduction="sum") / len(x) + lam * f.norm(p=1) / len(f),
        lambda x, x_hat, f, lam: [F.mse_loss(x_hat, x) * x.shape[1] + lam * f.norm(p=1, dim=1).mean()],
    ],
    wrong=[
        (paid(lambda e: e.square().mean()), "averaged over dimensions"),
        (paid(penalty=lambda f: f.mean()), "averaged over latents"),
        (paid(lambda e: e.square().mean(), lambda f: f.mean()), "both terms are averaged"),
        (paid(lambda e: e.square().sum(), lambda f: f.sum()), "both terms are summed over the batch"),
        (paid(lambda e: e.square().sum()), "the error is summed over the batch"),
        (paid(penalty=lambda f: f.sum()), "the penalty is summed over the batch"),
        (paid(lambda e: e.square().mean(), lambda f: f.sum()), "the other summed over all"),
        (paid(penalty=lambda f: (f > 0).float().sum(1).mean()), "this is L0"),
        (paid(penalty=lambda f: f.square().sum(1).mean()), "that is L2"),
        (paid(penalty=lambda f: f.norm(dim=1).mean()), "its L2 norm"),
        (paid(penalty=lambda f: f.norm()), "mean of |x - x_hat|^2"),
        (paid(penalty=lambda f: f.sum(1).square().mean()), "the square of |f|_1"),
        (paid(penalty=lambda f: f.amax(1).mean()), "mean of |x - x_hat|^2"),
        (paid(weigh=lambda e, p, lam: lam * e + p), "before the wrong term"),
        (paid(weigh=lambda e, p, lam: lam * (e + p)), "lambda weighs both terms"),
        (paid(weigh=lambda e, p, lam: e + p), "lambda is missing"),
        (paid(weigh=lambda e, p, lam: e - lam * p), "the penalty is subtracted"),
        (paid(weigh=lambda e, p, lam: e), "the penalty is missing"),
        (paid(weigh=lambda e, p, lam: lam * p), "the error is missing"),
        (paid(weigh=lambda e, p, lam: e / 2 + lam * p), "no factor 1/2"),
        (paid(weigh=lambda e, p, lam: (1 - lam) * e + lam * p), "mean of |x - x_hat|^2"),
        (paid(lambda e: e.norm(dim=1).mean()), "is not squared"),
        (paid(lambda e: e.abs().sum(1).mean()), "absolute errors"),
        (paid(lambda e: e.sum(1).square().mean()), "mean of |x - x_hat|^2"),
        (paid(lambda e: e.square().sum(1), lambda f: f.sum(1)), "one number for each sample"),
        (lambda x, x_hat, f, lam: paid()(x, -x_hat, f, lam), "added instead of compared"),
        (lambda x, x_hat, f, lam: paid()(x, x_hat, x_hat.abs(), lam), "the penalty is on x_hat"),
        (lambda x, x_hat, f, lam: paid()(x, x_hat, x.abs(), lam), "mean of |x - x_hat|^2"),
        (lambda *given: None, "None"),
    ],
)

# 3.3 known_features


def drawn(
    mask=lambda n, p: torch.rand(n, len(p)) < p,
    size=lambda n, p: torch.rand(n, len(p)),
    add=lambda x, f, D, noise: x + noise * torch.randn(x.shape),
    then=lambda x, f: (x, f),
):
    def known_features(batch, directions, feature_prob, noise):
        f = mask(batch, feature_prob) * size(batch, feature_prob)
        return then(add(f @ directions, f, directions, noise), f)

    return known_features


def one_draw(batch, directions, feature_prob, noise):
    u = torch.rand(batch, len(directions))
    f = torch.where(u < feature_prob, u, 0.0)
    return f @ directions + noise * torch.randn(batch, directions.shape[1]), f


def one_draw_rescaled(batch, directions, feature_prob, noise):
    """Right: given u < p, u / p is uniform."""
    u = torch.rand(batch, len(directions)) / feature_prob.clamp_min(1e-9)
    f = torch.where(u < 1, u, 0.0)
    return f @ directions + noise * torch.randn(batch, directions.shape[1]), f


def in_loops_of_numpy(batch, directions, feature_prob, noise):
    rng = np.random.default_rng()
    p, D = feature_prob.numpy().astype(float), directions.numpy().astype(float)
    f = rng.binomial(1, p, size=(batch, len(p))) * rng.uniform(0, 1, size=(batch, len(p)))
    return f @ D + rng.normal(0, noise, size=(batch, D.shape[1])), f


def column_by_column(batch, directions, feature_prob, noise):
    x, columns = torch.normal(0.0, 1.0, (batch, directions.shape[1])) * noise, []
    for direction, p in zip(directions, feature_prob, strict=True):
        columns.append(torch.bernoulli(torch.full((batch,), float(p))) * torch.empty(batch).uniform_())
        x = x + columns[-1][:, None] * direction
    return [x, torch.stack(columns, dim=1)]


def twice_drawn(batch, directions, feature_prob, noise):
    return drawn()(batch, directions, feature_prob, noise)[0], drawn()(batch, directions, feature_prob, noise)[1]


def noisy_features(batch, directions, feature_prob, noise):
    f = drawn()(batch, directions, feature_prob, noise)[1]
    return (f + noise * torch.randn(f.shape)) @ directions, f


def seeded(batch, directions, feature_prob, noise):
    torch.manual_seed(0)
    return drawn()(batch, directions, feature_prob, noise)


def tiled(batch, directions, feature_prob, noise):
    x, f = drawn()((batch + 1) // 2, directions, feature_prob, noise)
    return x.repeat(2, 1)[:batch], f.repeat(2, 1)[:batch]


def noise_where_on(x, f, D, noise):
    return x + noise * torch.randn(x.shape) * (f > 0).sum(1, keepdim=True)


def noise_in_both(batch, directions, feature_prob, noise):
    f = drawn()(batch, directions, feature_prob, noise)[1] + 0.1 * torch.randn(batch, len(directions))
    return f @ directions, f


KNOWN_FEATURES = Answers(
    right=[drawn(), one_draw_rescaled, in_loops_of_numpy, column_by_column],
    wrong=[
        (drawn(size=lambda n, p: torch.ones(n, len(p))), "only zeros and ones"),
        (one_draw, "one draw decides both"),
        (drawn(size=lambda n, p: torch.rand(n, 1)), "magnitudes of different features"),
        (drawn(size=lambda n, p: torch.rand(len(p))), "one magnitude shared by all samples"),
        (drawn(size=lambda n, p: torch.randn(n, len(p)).abs()), "between 0 and 1"),
        (drawn(size=lambda n, p: torch.rand(n, len(p)) ** 2), "uniform between 0 and 1"),
        (drawn(size=lambda n, p: 0.5 + (torch.rand(n, len(p)) - 0.5) / 2), "uniform between 0 and 1"),
        (drawn(mask=lambda n, p: torch.rand(len(p)) < p), "all samples share one mask"),
        (drawn(mask=lambda n, p: torch.rand(n, 1) < p), "one mask for all of them"),
        (drawn(mask=lambda n, p: torch.rand(n, len(p)) > p), "probability"),
        (drawn(mask=lambda n, p: torch.rand(n, len(p)) < p.mean()), "its own probability"),
        (drawn(mask=lambda n, p: torch.ones(n, len(p))), "the mask is missing"),
        (drawn(mask=lambda n, p: p), "the mask is missing"),
        (drawn(add=lambda x, f, D, noise: x), "the noise is missing"),
        (drawn(add=lambda x, f, D, noise: x + torch.randn(x.shape)), "without its factor"),
        (drawn(add=lambda x, f, D, noise: x + noise**2 * torch.randn(x.shape)), "it is not squared"),
        (drawn(add=lambda x, f, D, noise: x + noise**0.5 * torch.randn(x.shape)), "no square root"),
        (drawn(add=lambda x, f, D, noise: x + noise * torch.rand(x.shape)), "uniform"),
        (drawn(add=lambda x, f, D, noise: x + noise * (torch.rand(x.shape) - 0.5)), "uniform"),
        (drawn(add=lambda x, f, D, noise: x + noise * 12**0.5 * (torch.rand(x.shape) - 0.5)), "is Gaussian"),
        (drawn(add=lambda x, f, D, noise: x + noise * torch.randn(len(x), 1)), "one number for all dimensions"),
        (drawn(add=lambda x, f, D, noise: x + noise * torch.randn(x.shape[1])), "noise is drawn anew"),
        (drawn(add=lambda x, f, D, noise: x + noise * torch.randn(())), "noise is drawn anew"),
        (drawn(add=lambda x, f, D, noise: x * (1 + noise * torch.randn(x.shape))), "the noise is missing"),
        (drawn(add=noise_where_on), "the noise is missing"),
        (drawn(add=lambda x, f, D, noise: f @ F.normalize(D, dim=1) + noise * torch.randn(x.shape)), "to length 1"),
        (noisy_features, "the noise is added to the features"),
        (noise_in_both, "f is nowhere 0"),
        (twice_drawn, "not made of the f that is returned"),
        (seeded, "a seed is set"),
        (tiled, "a draw used twice"),
        (drawn(then=lambda x, f: (f, x)), "in this order"),
        (drawn(then=lambda x, f: x), "the answer is (x, f)"),
        (lambda *given: None, "is there a return"),
    ],
)

# 3.4 top_k_encode


def chosen(pre, k, dim=-1):
    values, index = pre.topk(k, dim=dim)
    return torch.zeros_like(pre).scatter(dim, index, values)


def keeping(
    keep=lambda pre, k: relu(chosen(pre, k)),
    pre=lambda x, W, b, b_dec: (x - b_dec) @ W + b,
):
    return lambda x, W_enc, b_enc, b_dec, k: keep(pre(x, W_enc, b_enc, b_dec), k)


def row_by_row(x, W_enc, b_enc, b_dec, k):
    """Right: a list of lists, each row sorted."""
    found = []
    for pre in ((x - b_dec) @ W_enc + b_enc).tolist():
        best = sorted(range(len(pre)), key=lambda i: -pre[i])[:k]
        found.append([max(v, 0) if i in best else 0 for i, v in enumerate(pre)])
    return found


def sorted_in_numpy(x, W_enc, b_enc, b_dec, k):
    pre = np.maximum((x - b_dec).double().numpy() @ W_enc.double().numpy() + b_enc.numpy(), 0)
    off = np.argsort(pre, axis=1)[:, :-k]
    np.put_along_axis(pre, off, 0, axis=1)
    return pre


def by_rank(pre, k):
    rank = pre.argsort(dim=1, descending=True).argsort(dim=1)
    return torch.where((rank < k) & (pre > 0), pre, 0)


def threshold(pre, k):
    return relu(torch.where(pre >= pre.topk(k).values[:, -1:], pre, 0))


def above(pre, k):
    return relu(torch.where(pre > pre.topk(k).values[:, -1:], pre, 0))


def chosen_before_bias(x, W_enc, b_enc, b_dec, k):
    pre = (x - b_dec) @ W_enc
    return relu(torch.where(chosen(pre, k) != 0, pre + b_enc, 0))


def extremes(pre, k):
    return torch.zeros_like(pre).scatter(1, pre.abs().topk(k).indices, 1.0) * pre


TOP_K_ENCODE = Answers(
    right=[
        keeping(),
        keeping(lambda pre, k: chosen(relu(pre), k)),
        keeping(by_rank),
        row_by_row,
        sorted_in_numpy,
        lambda x, W, b, b_dec, k: sa.SAE(W, b, torch.zeros(W.T.shape), b_dec, k).encode(x),
        keeping(pre=lambda x, W, b, b_dec: x @ W + (b - b_dec @ W)),
    ],
    wrong=[
        (keeping(pre=lambda x, W, b, b_dec: x @ W + b), "b_dec is not subtracted from x"),
        (keeping(pre=lambda x, W, b, b_dec: (x + b_dec) @ W + b), "b_dec is added to x"),
        (keeping(pre=lambda x, W, b, b_dec: (x - b_dec) @ W), "b_enc is missing"),
        (keeping(pre=lambda x, W, b, b_dec: x @ W), "and b_dec is not subtracted"),
        (keeping(pre=lambda x, W, b, b_dec: (x - b_dec) @ W - b), "b_enc is subtracted"),
        (keeping(lambda pre, k: chosen(pre, k)), "negative pre-activations are kept"),
        (keeping(lambda pre, k: relu(chosen(pre, k, dim=0)) if k <= len(pre) else relu(pre)), "over the batch"),
        (keeping(lambda pre, k: relu(chosen(pre.flatten(), k * len(pre))).view_as(pre)), "BatchTopK"),
        (keeping(lambda pre, k: relu(chosen(pre.flatten(), k)).view_as(pre)), "k are chosen from the whole batch"),
        (keeping(lambda pre, k: relu(-chosen(-pre, k))), "the k smallest"),
        (keeping(lambda pre, k: relu(extremes(pre, k))), "the k largest"),
        (keeping(extremes), "the k largest"),
        (keeping(lambda pre, k: chosen(pre.abs(), k)), "absolute values are chosen and kept"),
        (keeping(lambda pre, k: relu(pre)), "nothing is chosen"),
        (keeping(lambda pre, k: relu(pre - chosen(pre, k))), "the k largest"),
        (keeping(lambda pre, k: (chosen(pre, k) > 0).float()), "this is the mask"),
        (keeping(lambda pre, k: relu(chosen(pre, min(k + 1, pre.shape[1])))), "one too many"),
        (keeping(above), "one too few"),
        (keeping(lambda pre, k: pre.topk(k).values.relu()), "put them back in their places"),
        (keeping(lambda pre, k: F.pad(pre.topk(k).values.relu(), (0, pre.shape[1] - k))), "the k largest of"),
        (keeping(lambda pre, k: relu(pre - pre.topk(k).values[:, -1:])), "would shrink them"),
        (keeping(lambda pre, k: F.normalize(relu(chosen(pre, k)), dim=1)), "the k largest of"),
        (lambda x, W, b, b_dec, k: chosen((x - b_dec) @ W, k) + b, "takes part in the choice"),
        (lambda x, W, b, b_dec, k: relu(chosen((x - b_dec) @ W, k)) + b, "the k largest"),
        (lambda x, W, b, b_dec, k: relu(chosen((x - b_dec) @ W, k) + b), "the k largest of"),
        (chosen_before_bias, "before b_enc is added"),
        (keeping(threshold), "use the indices"),
        (keeping(lambda pre, k: relu(chosen(pre, 2))), "the k largest of"),
        (keeping(lambda pre, k: None), "None"),
    ],
)

# 3.5 unit_norm_step


def turned(
    project=lambda g, W: g - (g * W).sum(1, keepdim=True) / (W * W).sum(1, keepdim=True) * W,
    end=lambda W: F.normalize(W, dim=1),
    start=lambda W: W,
    step=lambda W, g, lr: W - lr * g,
):
    return lambda W_dec, grad, lr: end(step(start(W_dec), project(grad, W_dec), lr))


def latent_by_latent(W_dec, grad, lr):
    """Right: one row at a time, the projection as a matrix."""
    rows = []
    for w, g in zip(W_dec.double(), grad.double(), strict=True):
        w_new = w - lr * (torch.eye(len(w)).double() - torch.outer(w, w) / (w @ w)) @ g
        rows.append(w_new / w_new.norm())
    return torch.stack(rows)


def with_the_book(W_dec, grad, lr):
    remove_parallel(grad, F.normalize(W_dec, dim=1))
    W_dec -= lr * grad
    return F.normalize(W_dec, dim=1, out=W_dec)


def numpy_step(W_dec, grad, lr):
    W, g = W_dec.numpy(), grad.numpy()
    g = g - np.einsum("ij,ij->i", g, W)[:, None] * W / np.square(W).sum(1)[:, None]
    W = W - lr * g
    return (W / np.linalg.norm(W, axis=1, keepdims=True)).tolist()


def dot(g, W):
    return (g * W).sum(1, keepdim=True)


def along_columns(g, W):
    unit = F.normalize(W, dim=0)
    return g - (g * unit).sum(0) * unit


def after_the_step(W_dec, grad, lr):
    unit = F.normalize(W_dec, dim=1)
    W = W_dec - lr * grad
    return F.normalize(W - dot(W, unit) * unit, dim=1)


UNIT_NORM_STEP = Answers(
    right=[
        turned(),
        latent_by_latent,
        with_the_book,
        numpy_step,
        turned(
            lambda g, W: g - dot(g, F.normalize(W, dim=1)) * F.normalize(W, dim=1), lambda W: W / W.norm(dim=1)[:, None]
        ),
    ],
    wrong=[
        (turned(lambda g, W: g), "has to go first"),
        (turned(end=lambda W: W), "not brought back"),
        (turned(lambda g, W: g, end=lambda W: W), "plain gradient descent"),
        (turned(along_columns), "along columns"),
        (turned(lambda g, W: g - dot(g, W) * W), "not of length 1"),
        (turned(lambda g, W: g - dot(g, W) * F.normalize(W, dim=1)), "only if |w| = 1"),
        (turned(lambda g, W: g - dot(g, W) / dot(W, W) * F.normalize(W, dim=1)), "multiplied by w"),
        (turned(end=lambda W: W / W.norm()), "as a whole"),
        (turned(end=lambda W: F.normalize(W, dim=0)), "columns are normalised"),
        (turned(lambda g, W: g - (g * W).sum() / (W * W).sum() * W), "one projection for the whole"),
        (turned(step=lambda W, g, lr: W + lr * g), "the step goes up"),
        (turned(step=lambda W, g, lr: W - g), "lr is missing"),
        (turned(step=lambda W, g, lr: W - lr * F.normalize(g, dim=1)), "the gradient is brought to length 1"),
        (turned(start=lambda W: F.normalize(W, dim=1)), "rows are normalised first"),
        (turned(lambda g, W: g, start=lambda W: F.normalize(W, dim=1)), "across each row"),
        (turned(lambda g, W: dot(g, W) / dot(W, W) * W), "along the rows"),
        (turned(lambda g, W: g + dot(g, W) / dot(W, W) * W), "is added, not removed"),
        (turned(lambda g, W: g - g @ F.normalize(W, dim=1).T @ F.normalize(W, dim=1)), "from each other's"),
        (turned(step=lambda W, g, lr: W), "he step is missing"),
        (turned(step=lambda W, g, lr: g, end=lambda g: g), "he step is missing"),
        (turned(step=lambda W, g, lr: -lr * g, end=lambda g: g), "across each row"),
        (turned(end=lambda W: F.normalize(W, dim=1, p=1)), "a step across each row"),
        (turned(end=lambda W: W / dot(W, W)), "a step across each row"),
        (after_the_step, "a step across each row"),
        (turned(end=lambda W: None), "None"),
    ],
)

# 3.6 metrics


def reported(**changed):
    """The right report, with some entries computed otherwise: each a function of (x, x_hat, f, loss_of)."""
    usual = {
        "l0": lambda x, x_hat, f, loss_of: (f > 0).float().sum(1).mean(),
        "fvu": lambda x, x_hat, f, loss_of: (x - x_hat).square().sum() / (x - x.mean(0)).square().sum(),
        "recovered_zero": lambda x, x_hat, f, loss_of: share(loss_of, x, x_hat, torch.zeros_like(x)),
        "recovered_mean": lambda x, x_hat, f, loss_of: share(loss_of, x, x_hat, x.mean(0).expand_as(x)),
    }
    return lambda *given: {key: value(*given) for key, value in (usual | changed).items()}


def share(loss_of, x, x_hat, instead):
    bad = loss_of(instead)
    return (bad - loss_of(x_hat)) / (bad - loss_of(x))


def of_zero(formula):
    """A wrong share against zero ablation, from the losses clean, spliced and ablated."""
    return reported(recovered_zero=lambda x, x_hat, f, loss_of: formula(loss_of(x), loss_of(x_hat), loss_of(0 * x)))


def against(instead):
    return reported(
        recovered_mean=lambda x, x_hat, f, loss_of: share(loss_of, x, x_hat, instead(x, x_hat).expand_as(x))
    )


def unexplained(formula):
    return reported(fvu=lambda x, x_hat, f, loss_of: formula(x, x_hat))


def counted(formula):
    return reported(l0=lambda x, x_hat, f, loss_of: formula(f))


def with_the_library(x, x_hat, f, loss_of):
    clean, spliced = loss_of(x), loss_of(x_hat)
    zero, mean = loss_of(torch.zeros(len(x), x.shape[1])), loss_of(x.mean(0).repeat(len(x), 1))
    return {
        "l0": sa.l0(f),
        "fvu": sa.variance_unexplained(x, x_hat),
        "recovered_zero": sa.loss_recovered(clean, spliced, zero),
        "recovered_mean": sa.loss_recovered(clean, spliced, mean),
    }


def numpy_report(x, x_hat, f, loss_of):
    x, x_hat, f = (t.double().numpy() for t in (x, x_hat, f))
    found = {"l0": np.count_nonzero(f) / len(f), "fvu": np.square(x - x_hat).mean(0).sum() / x.var(axis=0).sum()}
    for name, other in (("zero", np.zeros_like(x)), ("mean", np.repeat(x.mean(0, keepdims=True), len(x), axis=0))):
        found[f"recovered_{name}"] = 1 - (loss_of(x_hat) - loss_of(x)) / (loss_of(other) - loss_of(x))
    return found


METRICS = Answers(
    right=[
        reported(),
        with_the_library,
        numpy_report,
        unexplained(lambda x, x_hat: ((x - x_hat) ** 2).mean(0).sum() / x.var(0).sum()),
        counted(lambda f: [f.count_nonzero(dim=1).double().mean()]),
    ],
    wrong=[
        (counted(lambda f: f.sum(1).mean()), "this is L1"),
        (counted(lambda f: (f > 0).float().mean()), "a share of all latents"),
        (counted(lambda f: (f == 0).float().mean()), "latents that are off"),
        (counted(lambda f: (f == 0).float().sum(1).mean()), "that are off"),
        (counted(lambda f: (f > 0).sum()), "over the whole batch"),
        (counted(lambda f: (f > 0.1).float().sum(1).mean()), "no threshold"),
        (counted(lambda f: (f > 0).any(0).sum()), "ever on"),
        (counted(lambda f: (f > 0).float().sum(0).mean()), "how many samples"),
        (counted(lambda f: (f > 0).sum(1)), "wrong shape"),
        (unexplained(lambda x, y: 1 - (x - y).square().sum() / (x - x.mean(0)).square().sum()), "that is explained"),
        (unexplained(lambda x, y: (x - y).square().sum() / x.square().sum()), "the mean is not taken off"),
        (unexplained(lambda x, y: (x - y).square().sum() / (x - x.median(0).values).square().sum()), "fvu"),
        (against(lambda x, y: x.median(0).values), "recovered_mean"),
        (unexplained(lambda x, y: (x - y).square().sum() / (x - x.mean()).square().sum()), "one mean for all"),
        (unexplained(lambda x, y: (x - y).square().sum() / (x - x.mean(1, True)).square().sum()), "dim=0"),
        (unexplained(lambda x, y: ((x - y).square().sum(1) / (x - x.mean(0)).square().sum(1)).mean()), "each sample"),
        (unexplained(lambda x, y: ((x - y).square().mean(0) / x.var(0)).mean()), "each dimension"),
        (unexplained(lambda x, y: (x - y).norm() / (x - x.mean(0)).norm()), "a ratio of lengths"),
        (unexplained(lambda x, y: (x - y).square().sum(1).mean()), "relative to nothing"),
        (unexplained(lambda x, y: (x - y).square().mean()), "fvu"),
        (unexplained(lambda x, y: (x - y).square().sum() / (y - y.mean(0)).square().sum()), "the variance of x_hat"),
        (unexplained(lambda x, y: (x - y).var(0).sum() / x.var(0).sum()), "a constant error"),
        (unexplained(lambda x, y: y.var(0).sum() / x.var(0).sum()), "over that of x"),
        (unexplained(lambda x, y: (x - x.mean(0)).square().sum() / (x - y).square().sum()), "fvu"),
        (of_zero(lambda c, s, a: (s - c) / (a - c)), "the share that is lost"),
        (of_zero(lambda c, s, a: (a - s) / a), "a share of the ablated loss"),
        (of_zero(lambda c, s, a: c / s), "without an ablation"),
        (of_zero(lambda c, s, a: s / c), "without an ablation"),
        (of_zero(lambda c, s, a: (s - c) / c), "an ablation is missing"),
        (of_zero(lambda c, s, a: (s - a) / (a - c)), "the sign"),
        (of_zero(lambda c, s, a: (a - c) / (a - s)), "the inverse"),
        (of_zero(lambda c, s, a: s / a), "subtract the clean loss"),
        (of_zero(lambda c, s, a: a - s), "recovered_zero"),
        (of_zero(lambda c, s, a: 100 * (a - s) / (a - c)), "recovered_zero"),
        (lambda x, y, f, of: reported()(x, y, f, of) | {"recovered_zero": share(of, x, x - y, 0 * x)}, "the error, in"),
        (against(lambda x, y: torch.zeros(())), "against zero ablation"),
        (against(lambda x, y: x.mean(1, keepdim=True)), "the mean over dimensions"),
        (against(lambda x, y: x.mean()), "the mean of all entries"),
        (against(lambda x, y: y.mean(0)), "the mean of x_hat"),
        (
            lambda *given: (
                (r := reported()(*given))
                | {"recovered_zero": r["recovered_mean"], "recovered_mean": r["recovered_zero"]}
            ),
            "against mean ablation",
        ),
        (reported(recovered_zero=lambda x, y, f, of: share(of, x, y, torch.ones_like(x))), "recovered_zero"),
        (lambda *given: tuple(reported()(*given).values()), "a dictionary with"),
        (lambda *given: {"l0": 1.0, "fvu": 0.1}, "a dictionary with"),
        (reported(fvu=lambda *given: None), "None"),
    ],
)

# 3.7 by_hand


def wired(where=0.5, *, scale=lambda s: 1 / (1 - s), **changed):
    """Threshold at a share of the way from epsilon to smallest; entries changed as functions of what is there."""

    def by_hand(directions, centre, epsilon, smallest):
        s = epsilon + where * (smallest - epsilon)
        W_enc = scale(s) * directions.T
        usual = {"W_enc": W_enc, "b_enc": -scale(s) * s - centre @ W_enc, "W_dec": directions, "b_dec": centre}
        return usual | {key: value(usual, directions, centre) for key, value in changed.items()}

    return by_hand


def dual(directions, centre, epsilon, smallest):
    """Right where directions are independent: the encoder reads each feature alone; else as usual."""
    if len(directions) > directions.shape[1]:
        return wired(0.3)(directions, centre, epsilon, smallest)
    t = smallest / 2
    W_enc = torch.linalg.pinv(directions.double()) / (1 - t)
    return {"W_enc": W_enc, "b_enc": -t / (1 - t) - centre.double() @ W_enc, "W_dec": directions, "b_dec": centre}


def in_lists(directions, centre, epsilon, smallest):
    s = 0.1 * epsilon + 0.9 * smallest
    D = directions.double().numpy()
    W_enc, b_enc = D.T / (1 - s), np.array([-(s + centre.double().numpy() @ w) / (1 - s) for w in D])
    return {"W_enc": W_enc.tolist(), "b_enc": b_enc.tolist(), "W_dec": D.tolist(), "b_dec": centre.tolist()}


BY_HAND = Answers(
    right=[wired(), wired(0.0), wired(0.99), wired(0.9999), dual, in_lists],
    wrong=[
        (wired(1.0), "below what the smallest magnitude"),
        (wired(1.3), "below what the smallest magnitude"),
        (wired(b_enc=lambda w, D, c: -c @ w["W_enc"]), "a threshold is missing"),
        (wired(-0.5 - 5), "threshold"),
        (wired(b_enc=lambda w, D, c: w["b_enc"] + c @ w["W_enc"]), "the encoder reads the centre"),
        (wired(b_enc=lambda w, D, c: w["b_enc"] + 2 * c @ w["W_enc"]), "the encoder reads the centre"),
        (wired(b_enc=lambda w, D, c: torch.zeros(len(D))), ""),
        (wired(b_dec=lambda w, D, c: 0 * c), "the centre is not added back"),
        (wired(b_dec=lambda w, D, c: -c), "wrong sign"),
        (wired(scale=lambda s: 1.0), "a longer encoder makes up"),
        (wired(scale=lambda s: 2 / (1 - s)), "which must be 1"),
        (wired(W_dec=lambda w, D, c: 2 * D), "rows of W_dec have length 1"),
        (wired(W_dec=lambda w, D, c: D.flip(0)), "is row i of W_dec"),
        (wired(W_dec=lambda w, D, c: D.T), "wrong shape"),
        (wired(W_enc=lambda w, D, c: w["W_enc"].T), "wrong shape"),
        (wired(W_enc=lambda w, D, c: w["W_enc"].flip(1)), "latent i on"),
        (wired(b_enc=lambda w, D, c: w["b_enc"][0]), "wrong shape"),
        (wired(W_dec=lambda w, D, c: -D, W_enc=lambda w, D, c: -w["W_enc"]), "latent i on"),
        (wired(b_dec=lambda w, D, c: c + 0.1), "x_hat is the centre"),
        (lambda D, c, eps, low: tuple(wired()(D, c, eps, low).values()), "a dictionary with"),
        (lambda *given: None, "a dictionary with"),
    ],
)

# 3.8 revive


def woken(
    chances=lambda loss: loss**2,
    pick=lambda chances, n, g: torch.multinomial(chances, n, generator=g),
    direction=lambda x, b_dec, x_hat: x - b_dec,
    length=lambda W, alive: 0.2 * W[:, alive].norm(dim=0).mean(),
    bias=lambda old: torch.zeros_like(old),
    error=lambda x, f, W_dec, b_dec: x - b_dec - f @ W_dec,
    centre=lambda x, b_dec: x - b_dec,
    unit=lambda rows: F.normalize(rows, dim=1),
    read=lambda rows: rows,
):
    def revive(W_enc, b_enc, W_dec, b_dec, dead, x, generator):
        W_enc, b_enc, W_dec = W_enc.clone(), b_enc.clone(), W_dec.clone()
        f = relu(centre(x, b_dec) @ W_enc + b_enc)
        loss = error(x, f, W_dec, b_dec).square().sum(1)
        rows = pick(chances(loss), len(dead), generator)
        rows = unit(direction(x[rows], b_dec, f[rows] @ W_dec + b_dec)).expand(len(dead), -1)
        alive = torch.ones(len(b_enc), dtype=torch.bool)
        alive[dead] = False
        size = length(W_enc, alive)
        W_dec[dead] = rows
        W_enc[:, dead] = size * read(rows).T
        b_enc[dead] = bias(b_enc[dead])
        return W_enc, b_enc, W_dec

    return revive


def changing(change):
    """The right answer, spoilt afterwards: `change(W_enc, b_enc, W_dec, dead, old)` in place."""

    def revive(W_enc, b_enc, W_dec, b_dec, dead, x, generator):
        old = W_enc.clone(), b_enc.clone(), W_dec.clone()
        new = woken()(W_enc, b_enc, W_dec, b_dec, dead, x, generator)
        change(*new, dead, old)
        return new

    return revive


def one_after_another(W_enc, b_enc, W_dec, b_dec, dead, x, generator):
    """Right: in place, samples drawn one by one and taken out of the draw."""
    alive = [i for i in range(len(b_enc)) if i not in set(dead.tolist())]
    loss = (b_dec + relu((x - b_dec) @ W_enc + b_enc) @ W_dec - x).square().sum(1)
    length = sum(W_enc[:, i].norm() for i in alive) / len(alive) / 5
    chance = loss.double() ** 2
    for i in dead.tolist():
        s = int(torch.searchsorted(chance.cumsum(0), torch.rand((), dtype=torch.float64) * chance.sum()))
        chance[s] = 0
        W_dec[i] = (x[s] - b_dec) / (x[s] - b_dec).norm()
        W_enc[:, i] = length * W_dec[i]
        b_enc[i] = 0
    return [W_enc, b_enc, W_dec]


def chosen_by_numpy(W_enc, b_enc, W_dec, b_dec, dead, x, generator):
    W_enc, b_enc, W_dec, b_dec, x = (t.double().numpy().copy() for t in (W_enc, b_enc, W_dec, b_dec, x))
    dead = dead.numpy()
    loss = np.square(x - b_dec - np.maximum((x - b_dec) @ W_enc + b_enc, 0) @ W_dec).sum(1)
    rows = np.random.default_rng().choice(len(x), size=len(dead), replace=False, p=loss**2 / (loss**2).sum())
    W_dec[dead] = (x[rows] - b_dec) / np.linalg.norm(x[rows] - b_dec, axis=1, keepdims=True)
    living = np.delete(W_enc, dead, axis=1)
    W_enc[:, dead] = 0.2 * np.linalg.norm(living, axis=0).mean() * W_dec[dead].T
    b_enc[dead] = 0
    return W_enc, b_enc, W_dec


def as_the_book(W_enc, b_enc, W_dec, b_dec, dead, x, generator):
    sae = sa.SAE(W_enc, b_enc - 0.0, W_dec, b_dec)
    sae.b_enc = b_enc - b_dec @ W_enc  # the book's ReLU kind does not centre x
    resample(sae, dead, x, generator)
    return sae.W_enc, sae.b_enc + b_dec @ sae.W_enc, sae.W_dec


def gumbel(chances, n, generator):
    """Right: the n largest of log-chances plus Gumbel noise are a draw without replacement."""
    return (chances.log() - (-torch.rand(len(chances)).clamp_min(1e-30).log()).log()).topk(n).indices


def broken(W_enc, b_enc, W_dec, b_dec, dead, x, generator):
    """What the exercise hands out."""
    f = relu((x - b_dec) @ W_enc + b_enc)
    loss = (x - b_dec - f @ W_dec).square().sum(dim=1)
    directions = F.normalize(x[torch.multinomial(loss**2, 1, generator=generator)] - b_dec, dim=1)
    W_dec[dead] = directions
    W_enc[:, dead] = W_enc.norm(dim=0).mean() * directions.T
    return W_enc, b_enc, W_dec


def with_replacement(chances, n, generator):
    return torch.multinomial(chances, n, replacement=True, generator=generator)


REVIVE = Answers(
    right=[woken(), woken(pick=gumbel), one_after_another, chosen_by_numpy, as_the_book],
    wrong=[
        (broken, "one draw for all of them"),
        (woken(pick=lambda p, n, g: torch.multinomial(p, 1, generator=g)), "one draw for all of them"),
        (woken(pick=lambda p, n, g: p.argmax()[None]), "one draw for all of them"),
        (woken(pick=with_replacement), "of its own"),
        (woken(pick=lambda p, n, g: p.topk(n).indices), "the worst samples are taken"),
        (woken(pick=lambda p, n, g: torch.randperm(len(p), generator=g)[:n]), "samples that are explained are drawn"),
        (woken(lambda loss: 1 / (loss + 0.1)), "samples that are explained are drawn"),
        (woken(lambda loss: (loss > 0.1).float() + 1e-12), "drawn alike"),
        (woken(lambda loss: loss.sqrt() + 1e-12), "in proportion to |x - x_hat|"),
        (woken(lambda loss: loss), "in proportion to the loss"),
        (woken(lambda loss: loss**4), "fourth power"),
        (woken(lambda loss: (loss > loss.mean()).float() + 1e-9), "the worst samples"),
        (woken(lambda loss: loss.softmax(0)), "samples"),
        (woken(error=lambda x, f, W, b: x - f @ W), "samples"),
        (woken(error=lambda x, f, W, b: x), "samples"),
        (woken(centre=lambda x, b: x), "samples"),
        (woken(length=lambda W, alive: 0.2 * W.norm(dim=0).mean()), "includes dead latents"),
        (woken(length=lambda W, alive: W[:, alive].norm(dim=0).mean()), "or it shouts"),
        (woken(length=lambda W, alive: W.norm(dim=0).mean()), "no factor of a fifth"),
        (woken(length=lambda W, alive: 0.2 * W[:, ~alive].norm(dim=0).mean()), "dead latents' own"),
        (woken(length=lambda W, alive: 1.0), "length 1, whatever"),
        (woken(length=lambda W, alive: 0.2), "length 0.2, whatever"),
        (woken(length=lambda W, alive: 0.2 * W[:, alive].norm()), "the whole matrix"),
        (woken(length=lambda W, alive: 0.2 * W[:, alive].norm(dim=1).mean()), "a latent's encoder is a column"),
        (woken(length=lambda W, alive: 5 * W[:, alive].norm(dim=0).mean()), "a fifth of the living"),
        (woken(bias=lambda old: old), "which kept them dead"),
        (woken(bias=lambda old: old.abs()), "the b_enc of revived latents is 0"),
        (woken(direction=lambda x, b, x_hat: x), "rows of W_dec along x\n"),
        (woken(direction=lambda x, b, x_hat: x + b), "along x + b_dec"),
        (woken(direction=lambda x, b, x_hat: b - x), "along -(x - b_dec)"),
        (woken(direction=lambda x, b, x_hat: x - x_hat), "along x - x_hat"),
        (woken(direction=lambda x, b, x_hat: torch.randn(x.shape)), "no sample at all"),
        (woken(unit=lambda rows: rows), "rows of W_dec have length 1"),
        (woken(read=lambda rows: -rows), "reads along its direction"),
        (woken(read=lambda rows: rows.flip(0)), "reads along its direction"),
        (changing(lambda W, b, D, dead, old: b.zero_()), "their b_enc changed"),
        (changing(lambda W, b, D, dead, old: W.mul_(0.2)), "their W_enc changed"),
        (changing(lambda W, b, D, dead, old: D.copy_(F.normalize(D + 0.01, dim=1))), "their W_dec changed"),
        (changing(lambda W, b, D, dead, old: W.copy_(old[0])), "were left as they were"),
        (changing(lambda W, b, D, dead, old: D.copy_(old[2])), "left as they were"),
        (lambda *given: woken()(*given)[::2], "the answer is (W_enc, b_enc, W_dec)"),
        (lambda *given: None, "is there a return"),
    ],
)

# 3.9 suspects

FOUND = {"A": "pairs", "B": "features", "C": "rotated", "D": "long rows"}

SUSPECTS = Answers(
    right=[FOUND, {key: f" {value.upper()} " for key, value in FOUND.items()}, dict(reversed(FOUND.items()))],
    wrong=[
        (FOUND | {"A": "features", "B": "pairs"}, "cosines"),
        (FOUND | {"C": "features", "B": "rotated"}, "lengths of its rows"),
        (FOUND | {"B": "long rows", "D": "features"}, "lengths of its rows are 1"),
        (FOUND | {"D": "features"}, "the lengths of the rows"),
        (FOUND | {"C": "features"}, "look at its L0"),
        (FOUND | {"C": "pairs"}, "look at its L0"),
        (dict.fromkeys("ABCD", "features"), "autoencoder A"),
        (FOUND | {"A": "merged"}, "no such answer"),
        (FOUND | {"A": None}, "A is None"),
        (FOUND | {"A": ...}, "still"),
        ({"A": "pairs"}, "a dictionary with"),
        (list(FOUND.values()), "a dictionary with"),
        ({value: key for key, value in FOUND.items()}, "a dictionary with"),
    ],
)

# 3.10 shrinkage

MEASURED = {"shift": 0.2, "shift_ten_times": 0.2, "off": 0.245, "pair": 0.4 / 3}

SHRINKAGE = Answers(
    right=[
        MEASURED,
        {"shift": torch.tensor(0.1985), "shift_ten_times": np.float64(0.204), "off": [0.25], "pair": 0.133},
        {"shift": torch.tensor([0.2]), "shift_ten_times": 0.2, "off": 0.243, "pair": np.float32(0.1335)},
    ],
    wrong=[
        (MEASURED | {"shift": 0.4}, "twice the distance"),
        (MEASURED | {"shift": 0.243}, "how far the latent falls short"),
        (MEASURED | {"shift": -0.2}, "the sign"),
        (MEASURED | {"shift": 0.0}, "how far x_hat falls short"),
        (MEASURED | {"shift_ten_times": 2.0}, "at every magnitude"),
        (MEASURED | {"shift_ten_times": 0.02}, "relative to x"),
        (MEASURED | {"shift_ten_times": 0.25}, "how far the latent falls short"),
        (MEASURED | {"shift_ten_times": 0.4}, "how far x_hat falls short"),
        (MEASURED | {"off": 0.2}, "lambda / 2 alone"),
        (MEASURED | {"off": 0.757}, "at which it is on"),
        (MEASURED | {"off": 0.85}, "without the feature"),
        (MEASURED | {"off": 0.0486}, "a share of all samples"),
        (MEASURED | {"off": 24.3}, "share of a feature"),
        (MEASURED | {"pair": 0.2}, "for a feature alone"),
        (MEASURED | {"pair": 0.4}, "a cosine of -1/2"),
        (MEASURED | {"pair": 0.267}, "twice too much"),
        (MEASURED | {"pair": 0.1}, "the same direction"),
        (MEASURED | {"pair": 0.867}, "this is the latent"),
        (MEASURED | {"pair": 0.8}, "a feature alone"),
        (MEASURED | {"pair": math.nan}, "NaN"),
        (MEASURED | {"pair": None}, "None"),
        (MEASURED | {"shift": torch.rand(3)}, "wrong shape"),
        ({"shift": 0.2, "off": 0.245}, "a dictionary with"),
        (tuple(MEASURED.values()), "a dictionary with"),
    ],
)

# 3.11 statements

TRUTH = dict(zip("abcdefghij", (False, True, True, False, True, False, False, True, True, False), strict=True))
WHY = {
    "a": "a rotated basis",
    "b": "the worse the ablation",
    "c": "nothing in the loss says",
    "d": "100,000 samples",
    "e": "x_hat stays",
    "f": "nobody knows them",
    "g": "several latents may share",
    "h": "imposed, not found",
    "i": "costs less than two",
    "j": "latents are not features",
}

STATEMENTS = Answers(
    right=[TRUTH, {key: np.bool_(value) for key, value in TRUTH.items()}, {k: str(v) for k, v in TRUTH.items()}],
    wrong=[(TRUTH | {key: not TRUTH[key]}, why) for key, why in WHY.items()]
    + [
        (dict.fromkeys(TRUTH, True), "statement a"),
        (dict.fromkeys(TRUTH, False), "statement b"),
        ({"a": False}, "one judgement for each"),
        (list(TRUTH.values()), "a dictionary"),
    ],
)

BANK = {
    "autoencoder": AUTOENCODER,
    "loss": LOSS,
    "known_features": KNOWN_FEATURES,
    "top_k_encode": TOP_K_ENCODE,
    "unit_norm_step": UNIT_NORM_STEP,
    "metrics": METRICS,
    "by_hand": BY_HAND,
    "revive": REVIVE,
    "suspects": SUSPECTS,
    "shrinkage": SHRINKAGE,
    "statements": STATEMENTS,
}
