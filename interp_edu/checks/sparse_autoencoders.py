"""Checks of chapter 3's exercises. Each stands on its own: formulas in float64, hand-worked cases, statistics."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interp_edu.checks.attention_heads import _entries, _first, _number, _shaped
from interp_edu.checks.core import Judge, _same, exercise
from interp_edu.checks.transformer import _matrices

Shape = tuple[int, ...]
HAND_WORKED = "hand-worked case"
LARGE_ENOUGH = 1e-3  # a mistake that changes a number by less than this is not told from the right one


def _parts(judge: Judge, answer: Any, names: str) -> list[Any]:
    """The answer's parts, if it is a tuple or list of as many as `names` counts."""
    ok = isinstance(answer, tuple | list) and len(answer) == names.count(",") + 1
    judge.that(ok, f"the answer is {names}", seen="None: is there a return?" if answer is None else answer)
    return list(answer)


def _wrong_latents(x: Tensor, W_e: Tensor, b_e: Tensor, W_d: Tensor, b_d: Tensor) -> dict[str, Tensor]:
    pre = x @ W_e.T + b_e
    f = torch.relu(pre)
    found = {
        "b_e is missing": torch.relu(pre - b_e),
        "b_e is added after the ReLU; it belongs inside, where it decides what is on": torch.relu(pre - b_e) + b_e,
        "b_e is subtracted: its sign is +": torch.relu(pre - 2 * b_e),
        "the ReLU is missing": pre,
        "b_d is subtracted from x first. Others do that; this formula does not": torch.relu((x - b_d) @ W_e.T + b_e),
        "W_d, transposed, is used to encode: the encoder has weights of its own": torch.relu(x @ W_d + b_e),
        "an absolute value instead of the ReLU": pre.abs(),
        "a sigmoid instead of the ReLU": torch.sigmoid(pre),
        "the ReLU stands on x; it belongs on the latents": torch.relu(x) @ W_e.T + b_e,
    }
    if W_e.shape[0] == W_e.shape[1]:
        found |= {
            "W_e is not transposed. Rows of x are samples: W_e x for each is x @ W_e.T": torch.relu(x @ W_e + b_e),
            "b_e and b_d are exchanged": torch.relu(pre - b_e + b_d),
            "W_e and W_d are exchanged": torch.relu(x @ W_d.T + b_e),
            "the pair is (f, x_hat), in this order": f @ W_d.T + b_d,
        }
    return found


def _wrong_outputs(x: Tensor, f: Tensor, pre: Tensor, W_e: Tensor, W_d: Tensor, b_d: Tensor) -> dict[str, Tensor]:
    x_hat = f @ W_d.T + b_d
    unit = F.normalize(W_d, dim=0)
    found = {
        "b_d is not added back": f @ W_d.T,
        "b_d is subtracted: its sign is +": f @ W_d.T - b_d,
        "there is no ReLU on the output: activations may be negative": torch.relu(x_hat),
        "x_hat is made of what the ReLU has not seen": pre @ W_d.T + b_d,
        "W_e is used to decode: the decoder has weights of its own": f @ W_e + b_d,
        "the decoder is taken as it is given: its columns are not normalised here": f @ unit.T + b_d,
        "this is the error; x_hat itself is asked for": x - x_hat,
        "x is added to the output: nothing goes around the latents": x_hat + x,
    }
    if W_d.shape[0] == W_d.shape[1]:
        found["W_d is not transposed. Rows of f are samples: W_d f for each is f @ W_d.T"] = f @ W_d + b_d
    return found


@exercise("The sparse autoencoder")
def autoencoder(fn: Any, judge: Judge) -> None:
    for batch, d, m in ((6, 4, 4), (5, 3, 7), (2, 6, 3), (1, 2, 5)):  # a square one first: nothing hides behind shapes
        given = judge.randn(batch, d), judge.randn(m, d), judge.randn(m), judge.randn(d, m), judge.randn(d)
        x, W_e, b_e, W_d, b_d = (t.double() for t in given)
        got = _parts(judge, judge.call(fn, *given), "(f, x_hat)")
        f = torch.relu(pre := x @ W_e.T + b_e)
        turned, swapped = "rows are samples: this is transposed", "the pair is (f, x_hat), in this order"
        known: dict[Shape, str] = {(m, batch): turned, (batch, d): swapped}
        _shaped(judge, got[0], (batch, m), known, "f")
        judge.close(got[0], f, "f = ReLU(W_e x + b_e)", mistakes=_wrong_latents(x, W_e, b_e, W_d, b_d), what="f")
        _shaped(judge, got[1], (batch, d), {(d, batch): turned}, "x_hat")
        mistakes = _wrong_outputs(x, f, pre, W_e, W_d, b_d)
        judge.close(got[1], f @ W_d.T + b_d, "x_hat = W_d f + b_d", mistakes=mistakes, what="x_hat")
    x, W_e, b_e = torch.tensor([[1.0, 2]]), torch.tensor([[1.0, 0], [0, 1], [-1, -1]]), -torch.ones(3)
    W_d, b_d = torch.tensor([[2.0, 0.0, 5.0], [0.0, 3.0, 5.0]]), torch.tensor([10.0, -4.0])
    got = _parts(judge, judge.call(fn, x, W_e, b_e, W_d, b_d), "(f, x_hat)")
    judge.close(got[0], torch.tensor([[0.0, 1.0, 0.0]]), f"{HAND_WORKED}: f")
    judge.close(got[1], torch.tensor([[10.0, -1.0]]), f"{HAND_WORKED}: x_hat")


def _wrong_losses(x: Tensor, x_hat: Tensor, f: Tensor, lam: float) -> dict[str, Tensor]:
    (batch, d), m, e = x.shape, f.shape[1], x - x_hat
    squared, L1, L0 = (e**2).sum(1).mean(), f.sum(1).mean(), (f > 0).double().sum(1).mean()
    L2, other = (f**2).sum(1).mean(), "sum over dimensions and latents, mean over samples"
    return {
        "the error is averaged over dimensions: |x - x_hat|^2 is their sum": squared / d + lam * L1,
        "the penalty is averaged over latents: |f|_1 is their sum": squared + lam * L1 / m,
        f"both terms are averaged over entries: {other}": squared / d + lam * L1 / m,
        "both terms are summed over the batch: take the mean": batch * (squared + lam * L1),
        "the error is summed over the batch: take the mean": batch * squared + lam * L1,
        "the penalty is summed over the batch: take the mean": squared + batch * lam * L1,
        f"one term is averaged over all entries, the other summed over all: {other}": squared / d + batch * lam * L1,
        "this is L0, the number of latents that are on; L1 adds up their values": squared + lam * L0,
        "the latents are squared: that is L2, which does not make them zero": squared + lam * L2,
        "this is the length of f, its L2 norm": squared + lam * f.norm(dim=1).mean(),
        "this is the square of |f|_1": squared + lam * (f.sum(1) ** 2).mean(),
        "lambda stands before the wrong term: it weighs the penalty": lam * squared + L1,
        "lambda weighs both terms": lam * (squared + L1),
        "lambda is missing": squared + L1,
        "the penalty is subtracted: it would reward latents for being on": squared - lam * L1,
        "the penalty is missing": squared,
        "the error is missing": lam * L1,
        "the length of the error is not squared": e.norm(dim=1).mean() + lam * L1,
        "absolute errors instead of squared ones": e.abs().sum(1).mean() + lam * L1,
        "there is no factor 1/2 in this loss": squared / 2 + lam * L1,
        "x and x_hat are added instead of compared": ((x + x_hat) ** 2).sum(1).mean() + lam * L1,
        "the penalty is on x_hat; it belongs on the latents": squared + lam * x_hat.abs().sum(1).mean(),
    }


@exercise("The sparse autoencoder")
def loss(fn: Any, judge: Judge) -> None:
    for batch, d, m in ((7, 3, 5), (4, 5, 11), (1, 4, 6)):
        x, x_hat, f = judge.randn(batch, d), judge.randn(batch, d), torch.relu(judge.randn(batch, m))
        lam = float(judge.rand(1, low=0.2, high=0.8))
        answer = judge.call(fn, x, x_hat, f, lam)
        single = batch == 1 or tuple(getattr(answer, "shape", ())) != (batch,)
        judge.that(single, "the loss is one number", likely="one number for each sample: take their mean")
        want = ((x - x_hat).double() ** 2).sum(1).mean() + lam * f.double().sum(1).mean()
        mistakes = _wrong_losses(x.double(), x_hat.double(), f.double(), lam)
        judge.close(_number(judge, answer, "the loss"), want, "mean of |x - x_hat|^2 + lambda |f|_1", mistakes=mistakes)
    x, x_hat, f = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2), torch.tensor([[1.0, 0, 2], [0, 0, 5]])
    answer = _number(judge, judge.call(fn, x, x_hat, f, 0.5), "the loss")
    judge.close(answer, torch.tensor(5 + 0.5 * 4), f"{HAND_WORKED}: (9 + 1) / 2 + 0.5 * 8 / 2")


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of every column of a with every column of b."""
    a, b = ((t - t.mean(0)) / t.std(0).clamp_min(1e-9) for t in (a, b))
    return a.T @ b / len(a)


def _sparse(judge: Judge, f: Tensor, prob: Tensor) -> None:
    """f [samples, features]: each entry 0 or, with its probability, uniform in (0, 1), and all independent."""
    N, on, values, half = len(f), (f != 0).double(), f[f != 0], len(f) // 2
    rate, mean = on.mean(0), f.sum(0) / on.sum(0).clamp_min(1)
    judge.that(((f >= 0) & (f <= 1)).all(), "magnitudes lie between 0 and 1", seen=f"{f.min():.3g} to {f.max():.3g}")
    claim, likely = "which features are on differs from sample to sample", "all samples share one mask: draw for each"
    likely = f"the mask is missing, or {likely}" if (rate == 1).all() else likely
    judge.that(
        not ((rate == 0) | (rate == 1)).all(), claim, seen="every sample has the same features on", likely=likely
    )
    worst, swapped = (rate - prob).abs().argmax(), ((rate - (1 - prob)).abs() < 0.05).all()
    likely = "feature_prob is the probability of being on, not of being off" if swapped else ""
    claim, seen = "a feature is on with its own probability", f"on in {rate[worst]:.3f} of the samples"
    ok = ((rate - prob).abs() < 6 * (prob * (1 - prob) / N).sqrt()).all()
    judge.that(ok, claim, seen=seen, expected=f"{prob[worst]:.3f}", likely=likely)
    claim, likely = "a feature that is on has a magnitude", "this is the mask: multiply it by magnitudes"
    judge.that(not (values == 1).all(), claim, seen="only zeros and ones", likely=likely)
    claim, likely = (
        "magnitudes differ from sample to sample",
        "one magnitude shared by all samples: draw for each entry",
    )
    spread = min(float(column[column > 0].std()) for column in f.T)
    judge.that(spread > 0.01, claim, seen="a feature has the same magnitude whenever it is on", likely=likely)
    claim, seen = "the magnitude of a feature that is on is uniform between 0 and 1", f"means {_short(mean)}"
    likely = "one draw decides both whether it is on and how large it is"
    ok = ((mean - 0.5).abs() < 6 * 0.289 / (N * prob).sqrt()).all()
    judge.that(ok, claim, seen=seen, expected="0.5 each", likely=likely)
    want = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    got = torch.quantile(values, want)
    judge.that((got - want).abs().max() < 0.025, claim, seen=f"quartiles {_short(got)}", expected="0.25, 0.5, 0.75")
    sizes, others = torch.where(on > 0, f - 0.5, 0.0), 1 - torch.eye(f.shape[1], dtype=torch.float64)
    pairs = {
        "which features are on: one mask for all of them?": _correlation(on, on) * others,
        "the magnitudes of different features: one magnitude for all of them?": _correlation(sizes, sizes) * others,
        "which features are on and the sizes of others: is a draw used twice?": _correlation(on, sizes) * others,
        "a sample and the next: is a draw used twice?": _correlation(f[1:], f[:-1]),
    }
    judge.that(not _twice(f[f.sum(1) > 0]), "samples are drawn one by one", likely="is a draw used twice?")
    for name, r in pairs.items():
        what, _, likely = name.partition(": ")
        seen = f"a correlation of {r.abs().max():.2f} between {what}"
        judge.that(r.abs().max() < 7 / math.sqrt(half), "all entries are independent", seen=seen, likely=likely)


def _short(values: Tensor) -> list[float]:
    return [round(value, 2) for value in values.tolist()]


def _twice(rows: Tensor) -> bool:
    """Whether more than a tenth of the rows repeat another."""
    key = (rows @ torch.arange(2.0, 2.0 + rows.shape[1]).double().sqrt()).sort().values
    return bool((key.diff() < 1e-6).double().mean() > 0.1)


def _alike(rows: Tensor) -> int:
    return len(rows) - len(rows.round(decimals=4).unique(dim=0))


def _gaussian(judge: Judge, rest: Tensor, f: Tensor, D: Tensor, noise: float) -> None:
    """What is left of x without the features: noise of the given size, independent of everything."""
    (N, d), half = rest.shape, len(rest) // 2
    bare = int((rest.abs().amax(1) < 1e-6).sum())
    judge.that(bare < 5, "x holds noise", seen=f"none in {bare} of {N} samples", likely="the noise is missing")
    judge.that(not _twice(rest), "noise is drawn anew for each sample", likely="draw [batch, d] numbers")
    covariance, uniform = rest.T @ rest / N / noise**2, (3**-0.5, 12**-0.5)
    size, shared = float(covariance.diagonal().mean().sqrt()), bool((covariance - 1).abs().max() < 0.15)
    reasons = {
        "one number for all dimensions of a sample: draw [batch, d]": shared,
        "the noise is added to the features: add it to x": bool((covariance - D.T @ D).abs().max() < 0.15),
        "noise is a standard deviation, not a variance: it is not squared": abs(size / noise - 1) < 0.05,
        "noise is a standard deviation, not a variance: no square root": abs(size * noise**0.5 - 1) < 0.05,
        "the noise is added without its factor": abs(size * noise - 1) < 0.05,
        "it is uniform; draw it with torch.randn": min(abs(size / value - 1) for value in uniform) < 0.05,
        "x is not made of the f that is returned: are the magnitudes, or the mask, drawn again?": size > 3,
    }
    seen = f"standard deviations {_short(rest.std(0))}, mean {rest.mean():.3f}"
    ok = (rest.mean(0).abs() < 6 * noise / math.sqrt(N)).all() and (covariance.diagonal() - 1).abs().max() < 0.11
    claim, likely = "x - f @ directions is Gaussian noise of the given size", _first(reasons)
    judge.that(ok, claim, seen=seen, expected=f"{noise}, mean 0", likely=likely)
    r = {
        "between dimensions": (_correlation(rest, rest) - torch.eye(d)).abs().max(),
        "between a sample and the next": _correlation(rest[1:], rest[:-1]).abs().max(),
        "with features": _correlation(rest, f).abs().max(),
        "of its size with which features are on": _correlation(rest**2, (f != 0).double()).abs().max(),
    }
    claim, worst = "the noise is independent of everything", max(r, key=lambda name: float(r[name]))
    judge.that(r[worst] < 7 / math.sqrt(half), claim, seen=f"a correlation of {r[worst]:.2f} {worst}", likely=likely)
    kurtosis = (rest**4).mean() / (rest**2).mean() ** 2
    judge.that(abs(kurtosis - 3) < 0.3, "the noise is Gaussian", seen=f"kurtosis {kurtosis:.2f}", expected="3")


@exercise("The puzzle: features that have no neuron")
def known_features(fn: Any, judge: Judge) -> None:
    N, n, d = 6000, 5, 3
    D, prob, noise = F.normalize(judge.randn(n, d), dim=1), judge.rand(n, low=0.2, high=0.6), 0.1
    x, f = _parts(judge, judge.call(fn, N, D, prob, noise), "(x, f)")
    f = _shaped(judge, f, (N, n), {(N, d): "the pair is (x, f), in this order", (n, N): "this is transposed"}, "f")
    x = judge.tensor(x, (N, d), "x")
    likely = "the noise is in f, too: it belongs to x"
    judge.that(f.min() >= 0 or not (f != 0).all(), "most features are off", seen="f is nowhere 0", likely=likely)
    _sparse(judge, f, prob)
    _gaussian(judge, x - f @ D.double(), f, D.double(), noise)
    again = judge.tensor(_parts(judge, judge.call(fn, N, D, prob, noise), "(x, f)")[1], (N, n), "f")
    claim, likely = "two calls give different samples", "a seed is set in the function"
    judge.that(not torch.equal(again, f), claim, seen="the same", likely=likely)
    D, prob = 2 * judge.randn(4, 6), torch.tensor([0.0, 1.0, 0.5, 0.5])
    x, f = _parts(judge, judge.call(fn, 200, D, prob, 0.0), "(x, f)")
    f, unit = judge.tensor(f, (200, 4), "f"), F.normalize(D.double(), dim=1)
    mistakes = {"directions are taken as they are given: they are not brought to length 1": f @ unit}
    judge.close(x, f @ D.double(), "without noise x is f @ directions", mistakes=mistakes, what="x")
    ok, seen = (f[:, 0] == 0).all() and (f[:, 1] != 0).double().mean() > 0.9, _short((f != 0).double().mean(0))
    judge.that(ok, "with probability 0 a feature is never on, with 1 always", seen=f"on in {seen} of the samples")


def _largest(pre: Tensor, k: int, dim: int = -1) -> Tensor:
    """pre where it belongs to the k largest along dim, else 0; negative ones stay negative."""
    return pre * torch.zeros_like(pre).scatter(dim, pre.topk(k, dim=dim).indices, 1.0)


def _wrong_top_k(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int) -> dict[str, Tensor]:
    pre, shift, (batch, m) = (x - b_dec) @ W_enc + b_enc, b_dec @ W_enc, (len(x), len(b_enc))
    chosen, kth, extreme = _largest(pre, k), pre.topk(k).values[:, -1:], pre * (_largest(pre.abs(), k) != 0)

    def of(pre: Tensor) -> Tensor:
        return torch.relu(_largest(pre, k))

    found = {
        "negative pre-activations are kept: among the k largest there may be some. ReLU them": chosen,
        "b_dec is not subtracted from x": of(pre + shift),
        "b_dec is added to x: it is subtracted here, and added after decoding": of(pre + 2 * shift),
        "b_enc is missing": of(pre - b_enc),
        "b_enc is missing, and b_dec is not subtracted": of(x @ W_enc),
        "b_enc is subtracted: its sign is +": of(pre - 2 * b_enc),
        "b_enc is added after choosing: it takes part in the choice": _largest(pre - b_enc, k) + b_enc,
        "the k latents are chosen before b_enc is added": torch.relu(pre * (_largest(pre - b_enc, k) != 0)),
        "the k smallest are kept": torch.relu(-_largest(-pre, k)),
        "the k largest absolute values are chosen: negative ones never count": torch.relu(extreme),
        "absolute values are chosen and kept": _largest(pre.abs(), k),
        "nothing is chosen: this is the ReLU": torch.relu(pre),
        "this is the mask: the latents keep their values": (chosen > 0).double(),
        "one too many is kept": torch.relu(_largest(pre, min(k + 1, m))),
        "one too few is kept: the k-th largest belongs to them (>=, not >)": torch.relu(_largest(pre, k - 1)),
        "values are counted from the smallest one kept: that would shrink them": torch.relu(pre - kth),
    }
    if batch > 1 and k <= batch:
        over = "the k largest are chosen over the batch: choose for each sample, along the last axis"
        found[over] = torch.relu(_largest(pre, k, dim=0))
    if batch > 1 and k < m:
        over, flat = "are chosen from the whole batch", pre.flatten()
        of_all = torch.relu(_largest(flat, batch * k)).view(batch, m)
        found[f"batch * k {over} (BatchTopK): here each sample has its own k"] = of_all
        found[f"k {over}: choose for each sample, along the last axis"] = of(flat).view(batch, m)
    return found


@exercise("TopK and JumpReLU")
def top_k_encode(fn: Any, judge: Judge) -> None:
    for batch, d, m, k in ((30, 5, 9, 2), (9, 4, 6, 5), (1, 3, 8, 8)):
        given = 2 * judge.randn(batch, d), judge.randn(d, m), judge.randn(m), judge.randn(d)
        x, W_enc, b_enc, b_dec = (t.double() for t in given)
        answer = judge.call(fn, *given, k)
        want = torch.relu(_largest((x - b_dec) @ W_enc + b_enc, k))
        known: dict[Shape, str] = {(batch, k): "these are the k values alone: put them back in their places"}
        got = _shaped(judge, answer, (batch, m), known, "the latents")
        mistakes = {} if _same(got, want, 1e-4) else _wrong_top_k(x, W_enc, b_enc, b_dec, k)
        judge.close(got, want, "the k largest of ReLU((x - b_dec) W_enc + b_enc)", mistakes=mistakes)
    x = torch.tensor([[2.0, 2.0, 2.0, 1.0], [-1.0, -2.0, -3.0, -4.0]])
    f = judge.tensor(judge.call(fn, x, torch.eye(4), torch.zeros(4), torch.zeros(4), 2), (2, 4))
    claim = "at most k latents are on, even if several have the same value"
    likely = "comparing with the k-th largest value keeps all that are equal to it: use the indices"
    judge.that((f[0] != 0).sum() <= 2, claim, seen=f[0], likely=likely)
    judge.that(sorted(f[0].tolist()) == [0, 0, 2, 2], f"{HAND_WORKED}: [2, 2, 2, 1] with k = 2", seen=f[0])
    judge.that((f[1] == 0).all(), "if all pre-activations are negative, nothing is on", seen=f[1])


def _wrong_steps(W: Tensor, grad: Tensor, lr: float) -> dict[str, Tensor]:
    unit, dot, square = F.normalize(W, dim=1), (grad * W).sum(1, keepdim=True), (W**2).sum(1, keepdim=True)
    right, columns = grad - dot / square * W, F.normalize(W, dim=0)
    by_columns, everything = grad - (grad * columns).sum(0) * columns, grad - dot.sum() / square.sum() * W

    def step(by: Tensor, W: Tensor = W) -> Tensor:
        return F.normalize(W - lr * by, dim=1)

    return {
        "these are the old rows at length 1. The step is missing, or goes along the rows": unit,
        "the step goes along the rows; it should go across": step(grad - right),
        "the gradient is taken as it is: its part along each row has to go first": step(grad),
        "rows are not brought back to length 1": W - lr * right,
        "this is plain gradient descent: no part of the gradient is removed, no row normalised": W - lr * grad,
        "the part along columns is removed; a latent's direction is a row": step(by_columns),
        "what is removed is (g . w) w with a w that is not of length 1: divide by |w|^2": step(grad - dot * W),
        "what is removed has the right length only if |w| = 1: divide by |w|^2, not |w|": step(grad - dot * unit),
        "(g . w) / |w|^2 has to be multiplied by w, not by w / |w|": step(grad - dot / square * unit),
        "the matrix is normalised as a whole: each row has length 1": (W - lr * right) / (W - lr * right).norm(),
        "columns are normalised; a latent's direction is a row": F.normalize(W - lr * right, dim=0),
        "one projection for the whole matrix: each row has its own": step(everything),
        "the step goes up: subtract lr times the gradient": step(-right),
        "lr is missing": step(right / lr),
        "the gradient is brought to length 1; only W_dec is": step(F.normalize(right, dim=1)),
        "rows are normalised first; the step starts from the W_dec that is given": step(right, unit),
        "rows are removed from each other's gradients; each from its own": step(grad - grad @ unit.T @ unit),
        "the part along the row is added, not removed": step(2 * grad - right),
        "this is the gradient without its part along the rows: the step is missing": right,
    }


@exercise("Unit norm, or how to cheat")
def unit_norm_step(fn: Any, judge: Judge) -> None:
    for m, d in ((5, 5), (7, 3), (2, 6)):
        given = judge.randn(m, d) * judge.rand(m, 1, low=0.6, high=1.6), judge.randn(m, d)
        W, grad = (t.double() for t in given)
        lr = float(judge.rand(1, low=0.3, high=0.6))
        unit = F.normalize(W, dim=1)
        want = F.normalize(W - lr * (grad - (grad * unit).sum(1, keepdim=True) * unit), dim=1)
        answer = judge.call(fn, *given, lr)
        judge.close(answer, want, "a step across each row, then length 1", mistakes=_wrong_steps(W, grad, lr))
    W = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    got = judge.call(fn, W, torch.tensor([[7.0, 1.5], [0.0, -9.0]]), 2.0)
    want = torch.tensor([[2**-0.5, -(2**-0.5)], [0.0, 1.0]])
    judge.close(got, want, f"{HAND_WORKED}: from (3, 0) by -2 (0, 1.5), and a gradient along its row")


def _toy_loss(x: Tensor, centre: Tensor, judge: Judge) -> Callable[[Any], float]:
    """The cross entropy of a linear classifier that is right on x and undecided at the centre."""
    U = judge.randn(x.shape[1], 4).double()
    labels = ((x - centre).double() @ U).argmax(dim=1)

    def loss_of(activations: Any) -> float:
        activations = torch.as_tensor(activations).double().expand(x.shape)
        return F.cross_entropy((activations - centre) @ U, labels).item()

    return loss_of


def _nearest(values: dict[str, Any], got: Tensor, want: Any, tol: float) -> dict[str, Tensor]:
    """Mistakes, those first that come nearest to what was given; without those that make no difference."""
    found = {text: torch.as_tensor(value) for text, value in values.items() if abs(value - want) > tol}
    return dict(sorted(found.items(), key=lambda item: abs(float(item[1] - got))))


def _wrong_l0(f: Tensor) -> dict[str, Tensor]:
    on = (f > 0).double()
    return {
        "this is L1, the sum of values; L0 counts the latents that are on": f.sum(1).mean(),
        "this is a share of all latents; L0 is a number of latents": on.mean(),
        "this is the share of latents that are off": 1 - on.mean(),
        "this is the number over the whole batch: take the mean over samples": on.sum(),
        "latents that are only a little on count as well: no threshold": (f > 0.1).double().sum(1).mean(),
        "these are the latents that are ever on; count for each sample": on.max(0).values.sum(),
        "this is the number of latents that are off": (1 - on).sum(1).mean(),
        "this is how many samples a latent is on for: count for each sample, along dim=1": on.sum(0).mean(),
    }


def _wrong_fvu(x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
    def size(v: Tensor) -> Tensor:
        return (v**2).sum()

    e, c = x - x_hat, x - x.mean(0)
    fvu, hat = size(e) / size(c), x_hat - x_hat.mean(0)
    return {
        "this is the share that is explained: 1 minus what is asked for": 1 - fvu,
        "the mean is not taken off x: a share of the squared length, not of the variance": size(e) / size(x),
        "one mean for all dimensions is taken off: each dimension has its own": size(e) / size(x - x.mean()),
        "the mean is that over samples: dim=0, not over dimensions": size(e) / size(x - x.mean(1, keepdim=True)),
        "one ratio for each sample, averaged: sum first, then divide": ((e**2).sum(1) / (c**2).sum(1)).mean(),
        "one ratio for each dimension, averaged: sum first, then divide": ((e**2).sum(0) / (c**2).sum(0)).mean(),
        "a ratio of lengths: both are squared": fvu.sqrt(),
        "this is the error itself, relative to nothing": (e**2).sum(1).mean(),
        "divided by the variance of x_hat; it is x's that is to be explained": size(e) / size(hat),
        "the variance of the error is taken: a constant error counts as well": size(e - e.mean(0)) / size(c),
        "this is the variance of x_hat over that of x": size(hat) / size(c),
    }


def _wrong_share(x: Tensor, x_hat: Tensor, loss_of: Callable[[Any], float], ablated: float) -> dict[str, float]:
    clean, spliced, rows = loss_of(x), loss_of(x_hat), x.mean(1, keepdim=True)

    def against(ablated: float) -> float:
        return (ablated - spliced) / (ablated - clean)

    return {
        "this is the share that is lost: 1 minus what is asked for": (spliced - clean) / (ablated - clean),
        "this is a share of the ablated loss; even the clean run leaves some loss": (ablated - spliced) / ablated,
        "this is clean over spliced loss, without an ablation": clean / spliced,
        "this is spliced over clean loss, without an ablation": spliced / clean,
        "this is how much the loss rises, relative to clean: an ablation is missing": (spliced - clean) / clean,
        "the sign: the ablated loss minus the others": (spliced - ablated) / (ablated - clean),
        "this is the inverse": (ablated - clean) / (ablated - spliced),
        "this is spliced over ablated loss: subtract the clean loss from both": spliced / ablated,
        "the model is given the error, in x's place; give it x_hat": (ablated - loss_of(x - x_hat)) / (ablated - clean),
        "the mean over dimensions is put in; mean ablation puts that over samples": against(loss_of(rows)),
        "one number, the mean of all entries, is put in; every dimension has its own": against(loss_of(x.mean())),
        "the mean of x_hat is put in; mean ablation puts that of x": against(loss_of(x_hat.mean(0))),
    }


@exercise("What to report")
def metrics(fn: Any, judge: Judge) -> None:
    for batch, d, m in ((800, 5, 9), (1000, 8, 4)):
        centre = judge.rand(d, low=1.0, high=4.0)
        x = (judge.randn(batch, d) ** 2 - 1) * judge.rand(d, low=0.5, high=1.5) + centre  # skewed: no median is a mean
        x_hat = 0.9 * x + judge.randn(batch, d) * judge.rand(d, low=0.2, high=2.0) * judge.rand(batch, 1)
        f = torch.relu(judge.randn(batch, m) * judge.rand(batch, 1) - 0.2) * judge.rand(1, m, low=0.01, high=2.0)
        loss_of = _toy_loss(x, centre, judge)
        while loss_of(torch.zeros(())) < 1.5 * loss_of(centre):  # the two baselines are to differ
            loss_of = _toy_loss(x, centre, judge)
        answer = judge.call(fn, x, x_hat, f, loss_of)
        _entries(judge, answer, "l0", "fvu", "recovered_zero", "recovered_mean")
        given = {key: _number(judge, value, key) for key, value in answer.items()}
        x, x_hat, f = x.double(), x_hat.double(), f.double()
        judge.close(given["l0"], (f > 0).double().sum(1).mean(), "l0", mistakes=_wrong_l0(f), what="l0")
        fvu = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
        tol = 2 * LARGE_ENOUGH  # a variance with N - 1 for N is as good
        mistakes = _nearest(_wrong_fvu(x, x_hat), given["fvu"], fvu, tol)
        judge.close(given["fvu"], fvu, "fvu", mistakes=mistakes, what="fvu", tol=tol)
        clean, spliced, zero, mean = map(loss_of, (x, x_hat, torch.zeros(()), x.mean(0)))
        other = {
            "recovered_zero": "this is counted against mean ablation: zero ablation puts 0 in the activations' place",
            "recovered_mean": "this is counted against zero ablation: mean ablation puts the mean over samples",
        }
        for key, ablated, instead in (("recovered_zero", zero, mean), ("recovered_mean", mean, zero)):
            want = (ablated - spliced) / (ablated - clean)
            shares = {other[key]: (instead - spliced) / (instead - clean), **_wrong_share(x, x_hat, loss_of, ablated)}
            told = _nearest(shares, given[key], want, LARGE_ENOUGH)
            judge.close(given[key], torch.tensor(want), key, mistakes=told, what=key, tol=LARGE_ENOUGH)


def _frame(judge: Judge, d: int, n: int) -> Tensor:
    """n of the 2d directions of two bases that are as oblique as can be (Hadamard), turned and jittered. [n, d]"""
    H = torch.ones(1, 1)
    while len(H) < d:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    both = torch.cat([torch.eye(d), H / math.sqrt(d)])[torch.randperm(2 * d, generator=judge.generator)[:n]]
    turned = both @ torch.linalg.qr(judge.randn(d, d))[0]
    return F.normalize(turned + 0.01 * judge.randn(n, d), dim=1).contiguous()


@exercise("An autoencoder by hand")
def by_hand(fn: Any, judge: Judge) -> None:
    for d, n in ((4, 6), (16, 21), (4, 3)):
        D, centre = _frame(judge, d, n), 2 * judge.randn(d)
        cosines = (D.double() @ D.double().T - torch.eye(n)).abs()
        epsilon = float(cosines.max()) + 0.01
        smallest = epsilon + float(judge.rand(1, low=0.1, high=0.25))
        answer = judge.call(fn, D, centre, epsilon, smallest)
        shapes: dict[str, tuple[int | str, ...]] = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
        W_enc, b_enc, W_dec, b_dec = _matrices(judge, answer, shapes).values()
        length, own = W_dec.norm(dim=1), torch.eye(n, dtype=torch.bool)
        seen, likely = f"from {length.min():.3f} to {length.max():.3f}", "what has to be longer is the encoder"
        judge.that((length - 1).abs().max() < LARGE_ENOUGH, "rows of W_dec have length 1", seen=seen, likely=likely)
        read = centre.double() @ W_enc
        for a in (1.0, smallest, 0.0):  # pre-activations are linear in the magnitude: its two ends are enough
            _only_own(judge, a * D.double() @ W_enc, b_enc + read, read, own, a)
        mistakes = {"the centre is not added back": 0.0 * centre, "b_dec has the wrong sign": -centre}
        judge.close(b_dec, centre, "with nothing on, x_hat is the centre", what="b_dec", mistakes=mistakes)
        got = torch.relu(D.double() @ W_enc + read + b_enc) @ W_dec
        along, off = (got * D).sum(1), (got - D).norm(dim=1).max()
        reasons = {
            "is row i of W_dec the direction of feature i?": (got - along[:, None] * D).norm(dim=1).max() > LARGE_ENOUGH
            or along.min() < 0,
            "the threshold is taken off what the right latent reads: a longer encoder makes up for it": along.max() < 1,
            "with an encoder of length c and a threshold t the latent reads c - t, which must be 1": True,
        }
        claim = "a feature at magnitude 1 is given back exactly"
        judge.that(off < LARGE_ENOUGH, claim, seen=f"off by up to {off:.3f}", likely=_first(reasons))


def _only_own(judge: Judge, read: Tensor, bias: Tensor, centre: Tensor, own: Tensor, a: float) -> None:
    """Checks that at magnitude a latent i is on for feature i only; at magnitude 0 none."""

    def right(bias: Tensor) -> bool:
        on = torch.relu(read + bias)
        return bool((not a or (on[own] > 1e-5).all()) and (on[~own] <= 1e-4).all())

    reads = "the encoder reads the centre, too, as it does not subtract it: b_enc takes centre @ W_enc off"
    told = reads if right(bias - centre) or right(bias - 2 * centre) else ""  # without it, or with the other sign
    f = torch.relu(read + bias)
    if not a:
        likely = told or "b_enc takes centre @ W_enc off, and the threshold"
        judge.that((f <= 1e-4).all(), "at the centre, no latent is on", seen=f"up to {f.max():.3f}", likely=likely)
        return
    off, others = int((f[own] <= 1e-5).sum()), int((f[~own] > 1e-4).sum())
    claim, seen = f"feature i switches latent i on, at magnitude {a:.2f}", f"off for {off} of {len(f)} features"
    likely = told or "the threshold must stay below what the smallest magnitude brings to the right latent"
    judge.that(not off, claim, seen=seen, likely=likely)
    claim, seen = f"feature i switches no other latent on, at magnitude {a:.2f}", f"{others} others are on"
    likely = "a threshold is missing" if bias.abs().max() < LARGE_ENOUGH else "the threshold is too low"
    likely = told or f"{likely}: a neighbour reads up to epsilon times the encoder's length"
    judge.that(not others, claim, seen=f"{seen}, up to {f[~own].max():.3f}", likely=likely)


def _revived(fn: Any, judge: Judge, old: list[Tensor], b_dec: Tensor, dead: Tensor, x: Tensor) -> list[Tensor]:
    """What comes back, if living latents are as they were."""
    names = ("W_enc", "b_enc", "W_dec")
    parts = _parts(judge, judge.call(fn, *old, b_dec, dead, x, judge.generator), f"({', '.join(names)})")
    new = [judge.tensor(part, tuple(o.shape), name) for part, o, name in zip(parts, old, names, strict=True)]
    alive = torch.ones(len(old[1]), dtype=torch.bool)
    alive[dead] = False
    for name, a, b in zip(names, new, old, strict=True):
        a, b = (t[:, alive] if name == "W_enc" else t[alive] for t in (a, b))
        same = (a - b).abs().max() < 1e-6
        judge.that(same, "living latents stay as they are", seen=f"their {name} changed", likely="index with `dead`")
    return new


@exercise("Dead latents")
def revive(fn: Any, judge: Judge) -> None:
    d, m, dead = 5, 12, torch.tensor([1, 4, 5, 9])
    alive = torch.tensor([i for i in range(m) if i not in dead.tolist()])
    W_enc, b_enc, b_dec = judge.randn(d, m) * judge.rand(m, low=0.5, high=3.0), judge.randn(m), 2 * judge.randn(d)
    W_dec, x = F.normalize(judge.randn(m, d), dim=1), judge.randn(9, d) + 2 * judge.randn(d)
    W_enc[:, dead] *= 4
    b_enc[dead] = -200 - judge.rand(4)
    new = _revived(fn, judge, [W_enc, b_enc, W_dec], b_dec, dead, x)
    rows, columns = new[2][dead], new[0][:, dead].T
    e = (x - b_dec) - torch.relu((x - b_dec) @ W_enc + b_enc) @ W_dec
    sources = {"x - b_dec": x - b_dec, "-(x - b_dec)": b_dec - x, "x": x, "x + b_dec": x + b_dec, "x - x_hat": e}
    match = {key: (F.normalize(rows) @ F.normalize(value.double()).T).amax(1) for key, value in sources.items()}
    found = next((key for key, cosine in match.items() if (cosine > 0.9999).all()), "no sample at all")
    claim, likely = "a revived latent points at a sample, seen from b_dec", "latents were left as they were"
    seen, likely = f"rows of W_dec along {found}", likely if (rows - W_dec[dead]).abs().max() < 1e-6 else ""
    judge.that(found == "x - b_dec", claim, seen=seen, expected="x - b_dec", likely=likely)
    ok, seen = (rows.norm(dim=1) - 1).abs().max() < LARGE_ENOUGH, f"lengths {_short(rows.norm(dim=1))}"
    judge.that(ok, "revived rows of W_dec have length 1", seen=seen)
    claim, likely = "each dead latent gets a sample of its own", "one draw for all of them: draw as many as are dead"
    judge.that(_alike(rows) < 3, claim, seen="all point in the same direction", likely=likely)
    judge.that(not _alike(rows), claim, seen="two have the same", likely="the draw is with replacement")
    cosine = F.cosine_similarity(rows, columns, dim=1)
    left = "the encoder's columns were left as they were" if (columns.T - W_enc[:, dead]).abs().max() < 1e-6 else ""
    claim, seen = "the encoder of a revived latent reads along its direction", f"cosines {_short(cosine)}"
    judge.that((cosine > 0.9999).all(), claim, seen=seen, likely=left)
    living, everybody = W_enc[:, alive].double(), W_enc.double().norm(dim=0).mean()
    own, gone = living.norm(dim=0).mean(), W_enc[:, dead].double().norm(dim=0).mean()
    sizes = {
        "the mean includes dead latents' encoders: take that of the living": 0.2 * everybody,
        "the encoder is as long as the others': a fifth of that is enough, or it shouts": own,
        "a mean over all latents, and no factor of a fifth: it shouts": everybody,
        "these are the dead latents' own lengths: take the living ones' mean": 0.2 * gone,
        "the encoder has length 1, whatever the living ones have": torch.tensor(1.0),
        "the encoder has length 0.2, whatever the living ones have": torch.tensor(0.2),
        "this is a fifth of the norm of the whole matrix": 0.2 * living.norm(),
        "rows of W_enc are measured; a latent's encoder is a column": 0.2 * living.norm(dim=1).mean(),
    }
    claim = "encoders of revived latents have a fifth of the living ones' mean length"
    mistakes = {text: value.double().expand(4) for text, value in sizes.items()}
    judge.close(columns.norm(dim=1), own.mul(0.2).expand(4), claim, mistakes=mistakes, what="the lengths", tol=1e-3)
    kept = (new[1][dead] - b_enc[dead]).abs().max() < 1e-3
    likely = "the old bias, which kept them dead, is still there" if kept else ""
    judge.that(new[1][dead].abs().max() < 1e-6, "the b_enc of revived latents is 0", seen=new[1][dead], likely=likely)
    _drawn_by_loss(fn, judge)


def _drawn_by_loss(fn: Any, judge: Judge) -> None:
    """Three kinds of samples, with squared errors 0, 1 and 2: the drawn ones are 0 %, 20 % and 80 %."""
    n_dead, d, drawn, claim = 120, 6, [], "each dead latent gets a sample of its own"
    W_dec = F.normalize(judge.randn(n_dead + 1, d), dim=1)
    W_dec[0] = torch.eye(d)[0]  # the one living latent explains samples of the first kind
    b_enc, dead = torch.full((n_dead + 1,), -100.0), torch.arange(1, n_dead + 1)
    b_dec = judge.randn(d).sign() * judge.rand(d, low=1.0, high=2.0)
    b_enc[0] = 0.0
    for _ in range(14):
        kind = torch.tensor([0, 1, 1, 2, 2]).repeat(300)[torch.randperm(1500, generator=judge.generator)]
        x = F.normalize(judge.randn(1500, d).abs() * (torch.arange(d) > 0), dim=1) * kind.sqrt()[:, None]
        x[kind == 1, 1] *= -1
        x[kind == 0, 0] = judge.rand(300, low=1.0, high=4.0)
        rows = _revived(fn, judge, [W_dec.T.clone(), b_enc, W_dec], b_dec, dead, x + b_dec)[2][1:]
        alike = _alike(rows[rows[:, 0] < 0.5])
        judge.that(not alike, claim, seen=f"{alike} of {n_dead} do not", likely="the draw is with replacement")
        drawn.append(rows)
    rows = torch.cat(drawn)
    shares = [float(which.double().mean()) for which in (rows[:, 0] > 0.5, rows[:, 1] < 0, rows[:, 1] > 0)]
    reasons = {
        "samples that are explained are drawn, too: the probability goes with the loss": shares[0] > 0.01,
        "the worst samples are taken, always the same: draw": shares[2] > 0.98,
        "drawn with the loss's fourth power: |x - x_hat|^2 is a square already, squared once more": shares[2] > 0.85,
        "all badly explained samples are drawn alike: their losses are to be squared": shares[2] < 0.54,
        "drawn in proportion to |x - x_hat|: the loss is its square, and is squared once more": shares[2] < 0.625,
        "drawn in proportion to the loss: to its square is asked for": True,
    }
    claim = "samples are drawn with a probability that goes with the square of their squared error"
    seen, ok = f"of samples with squared error 0, 1, 2: {_short(torch.tensor(shares))}", abs(shares[2] - 0.79) < 0.06
    judge.that(ok and shares[0] < 0.005, claim, seen=seen, expected="0, 0.2, 0.8", likely=_first(reasons))


# 3.9 to 3.11: investigations and judgements --------------------------------------------------------

SUSPECTS = {"A": "pairs", "B": "features", "C": "rotated", "D": "long rows"}
CONFUSED = {
    "rotated": "it reconstructs best, but look at its L0, and at the cosines of its rows with the features",
    "pairs": "few latents are on and it reconstructs well, but are there large cosines of its rows with features?",
    "features": "the lengths of its rows are 1, and a latent for each feature is among them",
    "long rows": "its directions are right: now look at the lengths of the rows of W_dec",
}


@exercise("Low loss, wrong features")
def suspects(answer: Any, judge: Judge) -> None:
    _entries(judge, answer, *SUSPECTS)
    for letter, right in SUSPECTS.items():
        options = dict.fromkeys(CONFUSED, CONFUSED[right])
        judge.choice(answer[letter], options, right, f"autoencoder {letter}")


LAMBDA_TWICE = "lambda against the square's derivative, which is twice the distance"
LATENT = "this is how far the latent falls short: b_dec gives a part of it back in x_hat"
SHRINKAGE = {  # value, tolerance, claim. With lambda = 0.4: lambda/2; lambda/2 + b_dec (0.043); lambda / (2 (1 + 1/2))
    "shift": (0.2, 0.01, "how far x_hat falls short"),
    "shift_ten_times": (0.2, 0.015, "how far x_hat falls short if activations are ten times as large"),
    "off": (0.243, 0.02, "the share of a feature's occurrences at which its latent is off"),
    "pair": (0.4 / 3, 0.003, "how far each of two latents with cosine 1/2 falls short"),
}
SHRINKAGE_HINTS = (
    ("shift", 0.4, LAMBDA_TWICE),
    ("shift", 0.243, LATENT),
    ("shift", -0.2, "the sign: the true magnitude minus that of x_hat"),
    ("shift", 0.153, "over all that are on, weak ones as well? Only those with a magnitude above 0.5"),
    ("shift_ten_times", 2.0, "it does not grow with activations: L1 pulls with the same force at every magnitude"),
    ("shift_ten_times", 0.02, "in units of x it is what it was; relative to x it is a tenth"),
    ("shift_ten_times", 0.25, LATENT),
    ("off", 0.2, "lambda / 2 alone would give that. b_dec learns to make up for the shift, and takes some more"),
    ("off", 0.757, "this is the share at which it is on"),
    ("off", 0.85, "this counts samples without the feature, too: only those with a magnitude above 0"),
    ("off", 0.0485, "this is a share of all samples: divide by the occurrences"),
    ("pair", 0.2, "so it is for a feature alone. Here each covers for the other: a part of what one lacks"),
    ("pair", 0.4, "that is for a cosine of -1/2"),
    ("pair", 0.267, "twice too much: the square's derivative is twice the distance. Or is it the sum of both?"),
    ("pair", 0.1, "that would be two features in the same direction"),
    ("pair", 0.8, "this is the latent of a feature alone; by how much each of two falls short is asked for"),
    ("pair", 0.867, "this is the latent; by how much it falls short of 1 is asked for"),
)


@exercise("TopK and JumpReLU")
def shrinkage(answer: Any, judge: Judge) -> None:
    _entries(judge, answer, *SHRINKAGE)
    for key, (want, tol, claim) in SHRINKAGE.items():
        got = float(_number(judge, answer[key], key))
        likely = next((text for k, v, text in SHRINKAGE_HINTS if k == key and abs(got - v) < max(tol, 0.01)), "")
        judge.that(abs(got - want) < tol, claim, seen=got, expected=f"{want:.3f}", likely=likely)


STATEMENTS = {
    "a": (False, "a rotated basis and its negative reconstruct exactly, and none of their directions is a feature"),
    "b": (True, "(ablated - spliced) / (ablated - clean): with the same SAE, the worse the ablation, the higher"),
    "c": (True, "no term of its loss pulls on values; and nothing in the loss says how many should be on"),
    "d": (False, "it may wait for a feature that comes once in 100,000 samples: look at more of them"),
    "e": (True, "divide the encoder and b_enc by c and multiply W_dec by c: x_hat stays, and L1 becomes 1/c of it"),
    "f": (False, "it needs the true features. Of a language model nobody knows them"),
    "g": (False, "several latents may share a feature, or stand for combinations: both lower the penalty or the error"),
    "h": (True, "the penalty makes latents sparse whatever the data are: sparsity of f is imposed, not found"),
    "i": (True, "one latent on costs less than two, so the general one stays off where a special one contains it"),
    "j": (False, "latents are not features: a feature may take two latents, or two features one"),
}


@exercise("What to report")
def statements(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)
