"""Checks of chapter 5's exercises. Each stands on its own: hand-worked cases, eigenvalues set by hand, maths anew."""

import functools
import itertools
import math
import operator
import random
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from interp_edu import tinyworld, weights
from interp_edu.checks.core import Judge, exercise
from interp_edu.checks.transformer import _a_head, _matrices, _size
from interp_edu.hooks import run_with_cache
from interp_edu.pretrained import load
from interp_edu.transformer import Config

Shape = tuple[int, ...]
Reasons = dict[str, Any]  # what may have gone wrong, and whether it looks like it
SMALL = ", small weights (a score is the same for small and large ones: no threshold, nothing added)"


def _shaped(judge: Judge, value: Any, shape: Shape, known: Mapping[Shape, str], what: str = "the result") -> Tensor:
    """The value as a tensor of that shape; a `known` wrong shape fails with what it means."""
    given = tuple(getattr(value, "shape", ()))
    ok, claim = given == shape or given not in known, f"{what} has the wrong shape"
    judge.that(ok, claim, seen=str(given), expected=str(shape), likely=known.get(given, ""))
    return judge.tensor(value, shape, what)


def _number(judge: Judge, value: Any, what: str = "the score") -> Tensor:
    """A number of any make, without axes: also a list or array of one entry, or a complex one that is real."""
    number: Any = np.asarray(value) if isinstance(value, complex | np.generic | list | tuple) else value
    if isinstance(number, Tensor | np.ndarray):
        if "complex" in str(number.dtype):
            cancel = "eigenvalues come in conjugate pairs: in their sum, imaginary parts cancel"
            imaginary = max(map(abs, number.imag.reshape(-1).tolist()))
            judge.that(imaginary < 1e-4, f"{what} is a real number", seen=str(number), likely=cancel)
            number = number.real
        number = number.reshape(()) if math.prod(number.shape) == 1 else number
    return judge.tensor(number, (), f"{what}, a number,")


def _first(reasons: Reasons) -> str:
    return next((text for text, holds in reasons.items() if holds), "")


def _entries(judge: Judge, answer: Any, *names: str) -> None:
    seen = sorted(map(str, answer)) if isinstance(answer, dict) else answer
    ok = isinstance(answer, dict) and set(answer) == set(names)
    judge.that(ok, f"a dictionary with {', '.join(names)} is expected", seen=seen)
    for name in (name for name in names if answer[name] is None):
        judge.fail(f"{name} is None", likely="a number belongs there: does what you call return one?")


def _judge_pair(judge: Judge, fn: Any, W: list[Tensor], QK: Tensor, OV: Tensor, case: str) -> None:
    """Checks of one head: W holds W_Q, W_K, W_V and W_O; QK and OV are what should come out."""
    d_model, d_head = W[0].shape
    got = judge.call(fn, *W)
    got = tuple(got) if isinstance(got, Tensor | np.ndarray) and np.ndim(got) == 3 else got
    judge.that(isinstance(got, tuple | list) and len(got) == 2, "the answer is a pair (W_QK, W_OV)", seen=got)
    paper = "the papers' W_Q is the transpose of the code's: their W_Q^T W_K is W_Q @ W_K.T here"
    other = "the papers' W_O and W_V are the transposes of the code's: their W_O W_V is W_O.T @ W_V.T here"
    first = _shaped(judge, got[0], (d_model, d_model), {(d_head, d_head): paper}, "W_QK")
    second = _shaped(judge, got[1], (d_model, d_model), {(d_head, d_head): other}, "W_OV")
    mistakes = {
        "queries and keys are exchanged: i, on the left, is the one that asks": QK.T,
        "this is W_OV: the pair is (W_QK, W_OV), in this order": OV,
        "this is W_V W_O: the pair is (W_QK, W_OV), in this order": OV.T,
        "divided by the square root of d_head: the score before that division is asked for": QK / d_head**0.5,
        "divided by d_head: the score before any division is asked for": QK / d_head,
    }
    judge.close(first, QK, f"{case}: the score of i with j is e_i^T W_QK e_j", mistakes=mistakes, what="W_QK")
    mistakes = {
        "this is W_V W_O, which acts on rows from the right: a map of columns is its transpose": OV.T,
        "divided by the square root of d_head: only scores are": OV / d_head**0.5,
    }
    judge.close(second, OV, f"{case}: what j hands over is W_OV e_j", mistakes=mistakes, what="W_OV")


@exercise("Two matrices")
def two_matrices(fn: Any, judge: Judge) -> None:
    for d_model, d_head in ((7, 3), (6, 5), (40, _size(judge, 8, 12))):
        W = [*(judge.randn(d_model, d_head) for _ in range(3)), judge.randn(d_head, d_model)]
        QK = torch.einsum("ie,je->ij", W[0].double(), W[1].double())
        OV = torch.einsum("je,ei->ij", W[2].double(), W[3].double())
        _judge_pair(judge, fn, W, QK, OV, f"a head of size {d_head} in {d_model} dimensions")
    W_Q, W_K, W_V = (torch.tensor(x)[:, None] for x in ([1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]))
    QK, OV = torch.zeros(3, 3), torch.zeros(3, 3)
    QK[0, 1] = 2  # dimension 0 asks for dimension 1
    OV[1, 2] = 15  # dimension 2 comes in with weight 3 and goes out along dimension 1 with weight 5
    _judge_pair(judge, fn, [W_Q, W_K, W_V, torch.tensor([[0.0, 5.0, 0.0]])], QK, OV, "a head of three numbers, by hand")


@exercise("What it moves: the OV circuit")
def output_by_source(fn: Any, judge: Judge) -> None:
    pattern, v = torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]), torch.tensor([[[2.0], [4.0]]])
    hand = torch.tensor([[[[2.0, 20.0, 0.0], [0.0, 0.0, 0.0]], [[0.5, 5.0, 0.0], [3.0, 30.0, 0.0]]]])
    _judge_sources(judge, fn, pattern, v, torch.tensor([[1.0, 10.0, 0.0]]), hand, "two positions, by hand")
    for batch, n, d_head, d_model in ((2, 5, 3, 7), (1, 4, 2, 6), (3, 1, 2, 5), (4, 9, 6, 20)):
        v, W_O, future = judge.randn(batch, n, d_head), judge.randn(d_head, d_model), torch.ones(n, n).triu(1).bool()
        pattern = (1.5 * judge.randn(batch, n, n)).masked_fill(future, -math.inf).softmax(-1)
        want = pattern.double()[..., None] * torch.einsum("bke,ed->bkd", v.double(), W_O.double())[:, None]
        case = f"{n} position{'s' * (n > 1)}, batch of {batch}"
        _judge_sources(judge, fn, pattern, v, W_O, want, case)


def _judge_sources(judge: Judge, fn: Any, pattern: Tensor, v: Tensor, W_O: Tensor, want: Tensor, case: str) -> None:
    (batch, n, d_head), d = v.shape, W_O.shape[1]
    summed = "this is summed over key positions: every summand is asked for, with an axis for the keys"
    order = "the order of the axes is [batch, query, key, d_model]"
    known: dict[Shape, str] = {
        **{(batch, n, d): summed, (n, d): summed},
        **{(batch, d, n, n): order, (batch, n, d, n): order, (n, n, batch, d): order},
        (batch, n, n, d_head): "these are still values, of size d_head: W_O takes them to the stream",
        (batch, n, d_head): "this is the weighted sum of values: keep an axis for the keys, and apply W_O",
        (batch, n, n): "one number for each pair of positions: the summands are vectors in the stream",
        (n, n, d): f"the axis of the batch is lost: {order}",
    }
    got = _shaped(judge, judge.call(fn, pattern, v, W_O), (batch, n, n, d), known)
    A, moved = pattern.double()[..., None], torch.einsum("bke,ed->bkd", v.double(), W_O.double())[:, None]
    mistakes = {
        "the two axes of positions are exchanged: first the query, then the key": want.transpose(1, 2),
        "the pattern is transposed: it is [batch, query, key]": A.transpose(1, 2) * moved,
        "the value is that of the query's position: what moves comes from the key's": A * moved.transpose(1, 2),
        "the pattern is not used: each summand has its weight": moved.expand_as(want),
        "divided by the number of positions: the output is a sum, not a mean": want / n,
        "each row of the batch has a pattern of its own: the first one's is used for all": A[:1] * moved,
        "each row of the batch has values of its own: the first one's are used for all": A * moved[:1],
        "a softmax is taken of the pattern, which has had one": A.softmax(2) * moved,
        "every entry holds the whole sum over keys": want.sum(2, keepdim=True).expand_as(want),
    }
    judge.close(got, want, f"{case}: the summand of key j at query i is A[i, j] times v_j W_O", mistakes=mistakes)


def _head_with(judge: Judge, T: Tensor, d_vocab: int, d_model: int) -> list[Tensor]:
    """W_E, W_V, W_O and W_U of a head whose full OV circuit has ten times the eigenvalues of T, and zeros."""
    shapes = ((d_vocab, d_model), (d_model, d_model), (d_model, len(T)), T.shape)
    E, *others = (judge.randn(*shape) for shape in shapes)
    E[:, ::2] *= torch.linspace(0, 4, d_vocab).exp()[:, None]  # half of the directions are the last words'
    E, R, W_V, S = (torch.linalg.qr(x)[0] for x in (E, *others))
    long, S = judge.rand(d_model, low=0.5, high=2.0), S * judge.rand(len(T), low=0.5, high=2.0)
    return [E * long, W_V, 10 * S @ T @ S.inverse() @ (R @ W_V).T, R @ (E / long).T]  # W_U W_E = R, a rotation


def _ratio(M: Tensor) -> Tensor:
    """The sum of a matrix's eigenvalues over the sum of their sizes."""
    values = torch.linalg.eigvals(M)
    return values.real.sum() / values.abs().sum()


def _score_mistakes(W: list[Tensor]) -> dict[str, Tensor]:
    """What mistakes make of the score."""
    W_E, W_V, W_O, W_U = (w.double() for w in W)
    small = (W_O @ W_U) @ (W_E @ W_V)
    values = torch.linalg.eigvals(small)
    real, imag, size, total = values.real, values.imag.abs(), values.abs().sum(), values.real.sum()
    symmetric = torch.linalg.eigvalsh(small)

    return {
        "an eigenvalue's size is that of the complex number, not of its real part": total / real.abs().sum(),
        "the size of an eigenvalue is the root of re^2 + im^2, not |re| + |im|": total / (real.abs() + imag).sum(),
        "the sign is lost: a head that lowers what it attends to has a negative score": total.abs() / size,
        "this is the share of positive eigenvalues: the score weighs them by size": (real > 0).double().mean(),
        "this is a mean of signs: the score is one sum divided by another": (real / values.abs()).mean(),
        "this is the sum of the eigenvalues, the trace: divide by the sum of their sizes": total,
        "divided by the number of eigenvalues: divide by the sum of their sizes": total / len(values),
        "divided by the largest eigenvalue: divide by the sum of all sizes": total / values.abs().max(),
        "always 1: sizes in the numerator as well, or singular values, which are never negative": total / total,
        "only positive eigenvalues are in the numerator: it has all of them": real.clamp_min(0).sum() / size,
        "W_E and W_U are forgotten: these are the eigenvalues of W_V W_O alone": _ratio(W_O @ W_V),
        "W_E is used twice: W_U turns the stream into logits": _ratio(W_O @ W_E.T @ W_E @ W_V),
        "W_U is used twice: W_E turns tokens into the stream": _ratio(W_O @ W_U @ W_U.T @ W_V),
        "eigvalsh is for symmetric matrices, which this is not": symmetric.sum() / symmetric.abs().sum(),
    }


class _Largest(TorchFunctionMode):
    """Records how many numbers the largest tensor holds that torch returns; a view counts as what it looks at."""

    numel = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, min(x.numel(), x.untyped_storage().nbytes() // x.element_size()))
        return out


def _watched(judge: Judge, fn: Any, *args: Any) -> tuple[Any, int]:
    """fn's value, and how many numbers it had at once: in its largest tensor, or in all that is NumPy's or Python's."""
    tracemalloc.start()
    try:
        with _Largest() as largest:
            got = judge.call(fn, *args)
        return got, max(largest.numel, tracemalloc.get_traced_memory()[1] // 4)
    finally:
        tracemalloc.stop()


def _judge_score(judge: Judge, fn: Any, W: list[Tensor], want: float, case: str) -> None:
    got = _number(judge, judge.call(fn, *W))
    named = abs(float(got) - want) > 1e-4 and want and not case.endswith(SMALL)
    mistakes = _score_mistakes(W) if named else {}
    judge.close(got, torch.tensor(want), case, mistakes=mistakes, what="the score")


@exercise("Does it copy? Eigenvalues")
def copying_score(fn: Any, judge: Judge) -> None:
    a = math.radians(60)
    turn = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    for d_vocab, d_model, gain in ((11, 8, 1.0), (23, 9, 0.05), (60, 16, 1.0)):
        reals, sign = judge.rand(_size(judge, 2, 4), low=-1.0, high=1.5), 1 if judge.rand(1) < 0.5 else -1
        # Two turns, by 60 and by 120 degrees: real parts are half of the sizes 1.3 and 0.7, each of them twice.
        T = sign * torch.block_diag(torch.diag(reals), 1.3 * turn, 0.7 * turn @ turn)
        want = sign * (float(reals.sum()) + 1.3 - 0.7) / (float(reals.abs().sum()) + 2.6 + 1.4)
        W, case = _head_with(judge, T, d_vocab, d_model), f"a head with {d_vocab} words"
        _judge_score(judge, fn, [gain * w for w in W], want, case if gain == 1 else case + SMALL)
    cases = {  # the full OV circuit of two or three words, and its score
        "each word raises itself": (torch.eye(3), 1.0),
        "each word lowers itself": (-torch.eye(3), -1.0),
        "two words raise themselves, one lowers itself": (torch.tensor([1.0, 1.0, -1.0]).diag(), 1 / 3),
        "two words are turned by 60 degrees: the real part of an eigenvalue is half its size": (turn, 0.5),
    }
    for case, (M, want) in cases.items():
        n = len(M)
        W_V = F.pad(2 * M, (0, 1, 0, 5 - n))  # [5, n + 1]
        _judge_score(judge, fn, [torch.eye(n, 5), W_V, torch.eye(n + 1, 5), torch.eye(5, n)], want, f"by hand: {case}")
    for name, place in (("W_V", 1), ("W_O", 2)):
        W = [judge.randn(9, 6), judge.randn(6, 2), judge.randn(2, 6), judge.randn(6, 9)]
        W[place] = torch.zeros_like(W[place])
        _judge_score(judge, fn, W, 0.0, f"a head of zeros ({name} = 0) has score 0")
    V, T = 250, torch.block_diag(torch.tensor([1.0, -0.4]).diag(), 1.3 * turn)
    W = _head_with(judge, T, V, 6)
    got, numel = min((_watched(judge, fn, *W) for _ in range(2)), key=operator.itemgetter(1))  # what a first call loads
    likely, whole = "do all words count, the last ones too?", torch.tensor((0.6 + 1.3) / (1.4 + 2.6))
    judge.close(_number(judge, got), whole, f"a head with {V} words", tol=1e-3, what="the score", likely=likely)
    seen = f"with {V} words, 6 dimensions and d_head 4, something of {numel:,} numbers"
    likely = "AB and BA have the same eigenvalues, zeros apart: cut W_E W_V W_O W_U in two so that BA is small"
    judge.that(numel < V**2, "no matrix of d_vocab by d_vocab is made", seen=seen, likely=likely)


def _composed(W: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """K-composition in float64, and what mistakes make of it. W: sender's W_V and W_O, receiver's W_Q and W_K."""
    W_V, W_O, W_Q, W_K = (w.double() for w in W)
    OV, KQ = W_V @ W_O, W_K @ W_Q.T

    def score(A: Tensor, B: Tensor, kind: Any = "fro") -> Tensor:
        together, a, b = (torch.linalg.matrix_norm(M, kind) for M in (A @ B, A, B))
        return together / (a * b)

    together, writes, reads = (M.square().sum().sqrt() for M in (OV @ KQ, OV, KQ))
    want = together / (writes * reads)
    return want, {
        "this is Q-composition, with W_Q W_K^T: what the queries read of the sender": score(OV, KQ.T),
        "OV is transposed: what the sender writes, by W_O, has to meet what the keys read, by W_K": score(OV.T, KQ),
        "sender and receiver are exchanged, or the product is in the wrong order": score(KQ, OV),
        "the norms are missing: divide by that of OV and that of W_K W_Q^T": together,
        "divided by one norm only: divide by both, the sender's and the receiver's": together / writes,
        "divided by the sum of the norms: divide by their product": together / (writes + reads),
        "the norms are squared: take the roots": want.square(),
        "this is the spectral norm, the largest singular value: Frobenius is asked for": score(OV, KQ, 2),
        "this is the nuclear norm, the sum of singular values: Frobenius is asked for": score(OV, KQ, "nuc"),
        "the receiver's W_Q is left out": score(OV, W_K),
        "the receiver's W_K is left out: these are queries": score(OV, W_Q),
        "the sender's W_V is left out: OV = W_V W_O": score(W_O, KQ),
        "this is in units of the baseline 1/sqrt(d_model): the plain score is asked for": want * len(OV) ** 0.5,
    }


@exercise("Composition: heads that read heads")
def k_composition(fn: Any, judge: Judge) -> None:
    sizes = (9, 2, 3, 7.0, 1.0), (12, 5, 4, 1.0, 1e-3), (40, 6, _size(judge, 7, 11), 1e-3, 0.2)
    for d_model, sender, receiver, *gains in sizes:
        shapes = ((d_model, sender), (sender, d_model), (d_model, receiver), (d_model, receiver))
        W = [gains[i // 2] * judge.randn(*shape) for i, shape in enumerate(shapes)]
        (want, mistakes), got = _composed(W), _number(judge, judge.call(fn, *W))
        case = f"d_head is {sender} in the sender and {receiver} in the receiver{SMALL * (min(gains) < 1)}"
        judge.close(got, want, case, mistakes=mistakes if min(gains) == 1 else {}, tol=1e-5, what="the score")
    hands = {  # what the keys read; the sender writes along dimension 2
        "the keys read just what the sender writes, by hand": ([0.0, 0.0, 5.0, 0.0], 1.0),
        "the keys read nothing of what the sender writes, by hand": ([0.0, 5.0, 0.0, 1.0], 0.0),
        "the keys read two dimensions alike, the sender writes one, by hand": ([0.0, 5.0, 5.0, 0.0], 0.5**0.5),
    }
    for case, (read, value) in hands.items():
        W = [torch.tensor([[3.0], [4.0], [0.0], [2.0]]), torch.tensor([[0.0, 0.0, 2.0, 0.0]])]
        W += [torch.tensor([[0.0], [1.0], [0.0], [2.0]]), torch.tensor(read)[:, None]]
        judge.close(_number(judge, judge.call(fn, *W)), torch.tensor(value), case, what="the score")
    for place, name in enumerate(("sender_W_V", "sender_W_O", "receiver_W_Q", "receiver_W_K")):
        W = [judge.randn(7, 2), judge.randn(2, 7), judge.randn(7, 3), judge.randn(7, 3)]
        W[place] = torch.zeros_like(W[place])
        got = _number(judge, judge.call(fn, *W))
        judge.close(got, torch.tensor(0.0), f"{name} = 0: nothing composes with nothing", what="the score")


def _terms(args: list[Tensor], mistake: str = "") -> Tensor:
    """All terms in float64, or what a mistake makes of them. `args`: parts, W_Q, b_Q, W_K, b_K."""
    parts, W_Q, b_Q, W_K, b_K = (x.double() for x in args)
    stream, root = parts.sum(dim=0), math.sqrt(W_Q.shape[int(mistake != "d_model")])
    variance = stream.var(dim=-1, correction=int(mistake == "unbiased"), keepdim=True)
    scale = {
        "no eps": variance.sqrt(),
        "eps outside": variance.sqrt() + 1e-5,
        "added up": (parts.var(dim=-1, correction=0, keepdim=True).sum(dim=0) + 1e-5).sqrt(),
        "variance": variance + 1e-5,
        "no scale": torch.ones_like(variance),
        "one scale": stream.std(correction=0).expand_as(variance),
        "rms": (stream.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt(),
    }.get(mistake, (variance + 1e-5).sqrt())
    means = {"no mean": torch.zeros(1), "stream's mean": stream.mean(dim=-1, keepdim=True)}
    centred = parts - means.get(mistake, parts.mean(dim=-1, keepdim=True))
    x = F.layer_norm(parts, parts.shape[-1:]) if mistake == "own" else centred / scale
    q, k = x @ W_Q, (centred if mistake == "query's scale" else x) @ W_K
    if mistake == "bias everywhere":
        q, k = q + b_Q, k + b_K
    over = {"scaled bias": "qk", "scaled query bias": "q", "scaled key bias": "k"}.get(mistake, "")
    b_q, b_k = (b.expand_as(q[:1]) / (scale if side in over else 1) for side, b in (("q", b_Q), ("k", b_K)))
    sides = ([b_q, q], [b_k, k]) if mistake == "bias first" else ([q, b_q], [k, b_k])
    terms = torch.einsum("aqe,cke->acqk", *map(torch.cat, sides)) / root
    if mistake == "query's scale":
        terms[:, :-1] = terms[:, :-1] / scale
    after = {"no root": terms * root, "d_head": terms / root}
    after |= {"parts": terms.transpose(0, 1), "positions": terms.mT, "mask": terms.tril()}
    return after.get(mistake, terms)


TERM_MISTAKES = {
    "own": "each part has a LayerNorm of its own: in the model one scale, that of the whole stream, divides them all",
    "no mean": "the mean is not subtracted: LayerNorm centres, and that may be done part by part",
    "stream's mean": "the mean of the whole stream is subtracted from every part: each part has its own",
    "unbiased": "the variance is divided by d_model - 1: torch's var and std do so unless told correction=0",
    "no eps": "eps is missing: LayerNorm divides by the root of variance + 1e-5, visible in a small stream",
    "eps outside": "eps belongs under the root, beside the variance",
    "added up": "the scale is made of the parts' variances: it is that of their sum, the stream",
    "no scale": "the division by LayerNorm's scale is missing",
    "variance": "divided by the variance: LayerNorm divides by its root",
    "one scale": "one scale for the whole row: each position has its own",
    "rms": "the root of the stream's mean square: LayerNorm's scale is that of the centred stream",
    "query's scale": "keys are divided by the scale of the query's position: each position has its own",
    "scaled bias": "the biases are divided by LayerNorm's scale: they are added after it",
    "scaled query bias": "the query's bias is divided by LayerNorm's scale, on its side only: it is added after it",
    "scaled key bias": "the key's bias is divided by LayerNorm's scale, on its side only: it is added after it",
    "bias everywhere": "the bias is added to every part, so it counts many times: it is one part more",
    "bias first": "the bias is the first part here: it is to be the last",
    "no root": "the scores are not divided by the square root of d_head",
    "d_head": "the scores are divided by d_head, not by its square root",
    "d_model": "the scores are divided by the square root of d_model, not of d_head",
    "mask": "a mask is applied: unmasked scores are asked for",
    "parts": "the first two axes are exchanged: first the query's part, then the key's",
    "positions": "the last two axes are exchanged: first the query's position, then the key's",
}


@exercise("A score, term by term")
def score_terms(fn: Any, judge: Judge) -> None:
    for P, n, d_model, d_head in ((3, 5, 8, 4), (2, 4, 11, 3), (6, 7, 24, 5), (1, 3, 6, 2)):
        parts = judge.randn(P, n, d_model) * judge.rand(P, n, 1, low=0.3, high=3.0) + judge.randn(P, n, 1)
        parts[:, n // 2] *= 0.002  # here the stream is so small that eps counts
        args = [parts, *(judge.randn(*shape) for shape in 2 * ((d_model, d_head), (d_head,)))]
        want, got = _terms(args), judge.call(fn, *args)
        order = "the order of the axes is [query part, key part, query, key]"
        pairs = "every part of the query meets every part of the key, not only itself"
        known: dict[Shape, str] = {
            (P, P, n, n): "the bias is one part more: part + 1 parts on both sides",
            (n, n): "these are the scores themselves: their terms are asked for",
            **{(n, n, P + 1, P + 1): order, (P + 1, n, P + 1, n): order, (P, n, n): pairs, (P + 1, n, n): pairs},
        }
        if isinstance(got, Tensor | np.ndarray) and tuple(got.shape) == tuple(want.shape):
            there = torch.as_tensor(got)
            masked = there.isinf().any() and there.tril().isfinite().all()
            judge.that(not masked, "unmasked scores", seen="minus infinity", likely=TERM_MISTAKES["mask"])
        got = _shaped(judge, got, tuple(want.shape), known)
        off = float((got - want).sum(dim=(0, 1)).abs().max())
        sums = f"their sum over the first two axes is off by up to {off:.2g}: compare it with the whole stream's scores"
        if off < 1e-3 * float(want.abs().max()):
            own = "each part is centred by its own mean and divided by the whole stream's scale"
            sums = f"the terms do add up to the scores, but the single ones are others: {own}"
        wrong = float((got - want).abs().max()) > 1e-4
        mistakes = {text: _terms(args, name) for name, text in TERM_MISTAKES.items() if wrong}
        judge.close(got, want, f"{P} part{'s' * (P > 1)} and the bias, {n} positions", mistakes=mistakes, likely=sums)


@dataclass(frozen=True)
class _Wired:
    """A head's scores [query word, key word] and what attending to each word writes, OV [word, out]; and its task."""

    scores: Tensor
    OV: Tensor
    triples: list[tuple[int, int, int]]

    def why_elsewhere(self, words: list[int], source: int, out: Tensor) -> Reasons:
        """Why the last of `words`, a destination, does not attend to its source."""
        asking, turned = words[-1], self.scores[source, words[-1]]
        of = {word: float(self.scores[asking, word]) for word in sorted({*words})}
        spread, own = max(of.values()) - min(of.values()), of.pop(source)
        rival = max(of, key=lambda word: of[word])
        gap, sources = own - of[rival], {s for s, _, _ in self.triples}
        wired = "is this rule wired? (out words may repeat)"
        low = float(self.scores[asking].index_fill(0, torch.tensor([0, source]), math.inf).min())
        sharp = f"it scores {gap:.1f} more than word {rival}; scores are divided by sqrt(d_head), make them larger"
        return {
            "queries and keys are exchanged: destinations ask (W_Q), sources answer (W_K)": turned > own + 1,
            "it attends to all alike: what the destination asks for is not what the source answers": spread < 1e-3,
            f"destination {asking} does not ask for source {source}: {wired}": own < low + 1e-3,
            f"the right place, but not sharply: {sharp}": gap > 0.5,
            "its resting place, word 0, scores as high as a source that matches, or higher: rest with less": rival == 0,
            "it attends to the source of another triple: queries and keys need a dimension for each": rival in sources,
            "it attends to itself: the key of a destination has to stay low": rival == asking,
            f"word {rival} scores as high as the source: only sources and the resting place should have keys": True,
        }

    def why_written(self, words: list[int], source: int, out: Tensor) -> Reasons:
        """Why attention to the right source, by the last of `words`, did not write what it should have: `out`."""
        word = next(word for s, _, word in self.triples if s == source)
        rest = out.index_fill(0, torch.tensor(word), 0).abs()
        at, clean, silent = int(rest.argmax()), rest.max() < 0.02, out[word].abs() < 0.02
        misread = silent and self.OV[words[-1], word] > 0.9
        return {
            "the value is the destination's: what moves comes from the attended word, the source": misread,
            "nothing is written: W_V reads the source, W_O leads to the out word": clean and silent,
            "the right word with the wrong weight: what W_V and W_O multiply to has to be one": clean,
            "it writes the source instead of the out word": silent and at == source,
            "it writes the destination instead of the out word": silent and at == words[-1],
            f"word {at} is written, for which this source does not stand: has each triple a value of its own?": True,
        }

    def why_not_silent(self, words: list[int], source: int, out: Tensor) -> Reasons:
        """Why the last of `words` writes something, though no rule holds there."""
        asking, seen = words[-1], torch.tensor(words)
        of = self.scores[asking, seen]
        culprit = int(seen[(of.softmax(0) * self.OV[seen].abs().amax(dim=1)).argmax()])
        stranger = culprit not in {s for s, _, _ in self.triples}
        leaks = self.scores[asking, culprit] < of.max() - 0.5
        root = " (scores are divided by sqrt(d_head))"
        nothing = "a query that asks for nothing here spreads over all, sources too"
        return {
            "word 0 has a value: the resting place must be one from which nothing comes": culprit == 0,
            f"word {culprit}, which is no source, has a value: only sources may": stranger,
            f"no resting place: {nothing}; give every query a score with word 0": of.max() - of.min() < 1,
            f"the resting place does not hold it: other sources must score far lower{root}": leaks,
            "it attends to the source of another triple: queries and keys need a dimension for each": source >= 0,
            "a source attends to itself: only its destination may ask for it": asking == culprit,
            f"word {asking} is no destination, but asks for the source {culprit}": True,
        }


def _rows(judge: Judge, triples: list[tuple[int, int, int]], d_vocab: int) -> Tensor:
    """Rows of 40 words, word 0 first, that try what a head wired for these triples must and must not do."""
    sources, destinations, _ = (list(column) for column in zip(*triples, strict=True))
    idle = sorted({*range(1, d_vocab)} - {*sources, *destinations})

    def draw(pool: list[int], n: int) -> list[int]:
        return [pool[i] for i in torch.randint(len(pool), (n,), generator=judge.generator).tolist()]

    pairs = [word for triple in triples for word in triple[:2]]
    rows = [draw(idle or destinations, 39), *((39 * pairs[i : i + 38])[:39] for i in range(0, len(pairs), 38))]
    for source, destination, _ in triples[:4]:
        quiet = idle or destinations  # nothing that this head may take for the source
        busy = [word for word in (*quiet, *sources, *sources) if word != source]
        rows += [
            [source, destination, *draw(quiet, 36), destination],
            [destination, *draw(quiet, 18), source, *draw(busy, 18), destination],
            [source, *draw(busy, 37), destination],  # far back, among many others
            [*draw(quiet, 9), *[source] * 29, destination],
            [*draw(busy, 19), destination, *draw(busy, 17), source, source],
        ]
    for _ in range(6):
        few = torch.randint(len(triples), (4,), generator=judge.generator).tolist()
        rows.append(draw([word for i in few for word in triples[i][:2]] + draw(idle or destinations, 4), 39))
    return torch.tensor([[0, *row] for row in rows])


@exercise("Two matrices")
def skip_trigram_head(fn: Any, judge: Judge) -> None:
    few = _size(judge, 3, 4)
    for n, V in ((1, _size(judge, 6, 9)), (few, 2 * few + _size(judge, 3, 6)), (6, 13), (12, 60), (60, 125)):
        words = (1 + torch.randperm(V - 1, generator=judge.generator)).tolist()
        outs = [_size(judge, 1, V - 1) for _ in range(n)]
        if n == 12:
            outs[:4] = words[0], words[-1], outs[5], outs[5]  # a source of the list, and one word three times
        triples = list(zip(words[:n], words[n : 2 * n], outs, strict=True))
        shapes: Any = {"W_Q": (V, "d_head"), "W_K": (V, "d_head"), "W_V": (V, "n"), "W_O": ("n", V)}
        W = _matrices(judge, judge.call(fn, list(triples), V), shapes)
        judge.that(W["W_Q"].shape[1] > 0, "d_head is at least 1", seen=0)
        scores = W["W_Q"] @ W["W_K"].T / math.sqrt(W["W_Q"].shape[1])
        _judge_head(judge, _Wired(scores, W["W_V"] @ W["W_O"], triples), _rows(judge, triples, V))


def _judge_head(judge: Judge, head: _Wired, rows: Tensor) -> None:
    V = len(head.OV)
    source_of, out_of = torch.full((V,), -1), torch.zeros(V, V, dtype=torch.float64)
    for source, destination, word in head.triples:
        source_of[destination], out_of[destination, word] = source, 1
    causal = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool).tril()
    sought = (rows[:, None, :] == source_of[rows][:, :, None]) & causal
    holds, scores = sought.any(-1), head.scores[rows[:, :, None], rows[:, None, :]]
    pattern = scores.masked_fill(~causal, -math.inf).softmax(-1)
    found, written, want = (pattern * sought).sum(-1), pattern @ head.OV[rows], out_of[rows] * holds[..., None]
    off = (written - want).abs()
    wrong = off.amax(-1) > 0.02
    attention = "after its source, a destination gives its sources more than 0.99 of its attention"
    tests: dict[str, tuple[Tensor, Any]] = {
        attention: (holds & (found <= 0.99), head.why_elsewhere),
        "where the rule holds, out is written as one-hot, weight one": (holds & wrong, head.why_written),
        "elsewhere nothing is written": (~holds & wrong, head.why_not_silent),
    }
    for claim, (failed, why) in tests.items():
        judge.checks += 1
        if bool(failed.any()):
            row, at = min(failed.nonzero().tolist(), key=operator.itemgetter(1))  # the shortest row
            words, source = rows[row, : at + 1].tolist(), int(source_of[rows[row, at]])
            most = int(off[row, at].argmax())
            shown = " ".join(map(str, words if at < 12 else [*words[:4], "...", *words[-6:]]))
            rule = next((f"rule {triple}" for triple in head.triples if triple[1] == words[-1]), "no rule")
            does = f"{written[row, at, most]:.3g} is written for word {most}"
            does = f"{found[row, at]:.2f} goes to word {source}" if claim == attention else does
            case = f"{does} at the end of the row {shown} ({rule}; {len(head.triples)} in all)"
            expected = "1, give or take 0.02" if want[row, at, most] else "at most 0.02"
            expected = "more than 0.99" if claim == attention else expected
            judge.fail(claim, seen=case, expected=expected, likely=_first(why(words, source, written[row, at])))


@functools.cache
def _copying(seed: int) -> tuple[Tensor, Tensor]:
    """Copying scores of a course model's heads for rows of W_E, and those of W_V W_O alone, both [layer, head]."""
    cfg = tinyworld.CONFIG
    p = {name: value.double() for name, value in load("tinyworld", seed=seed).state_dict().items()}
    W_U = p["ln_final.w"][:, None] * p["unembed.W_U"]
    x, W_U = F.layer_norm(p["embed.W_E"], (cfg.d_model,)), W_U - W_U.mean(dim=0)
    full, plain = torch.zeros(2, cfg.n_layers, cfg.n_heads)
    for layer, head in itertools.product(range(cfg.n_layers), range(cfg.n_heads)):
        at = f"blocks.{layer}"
        W_V, W_O = p[f"{at}.ln1.w"][:, None] * p[f"{at}.attn.W_V"][head], p[f"{at}.attn.W_O"][head]
        full[layer, head], plain[layer, head] = _ratio(W_O @ W_U @ x @ W_V), _ratio(W_O @ W_V)
    return full, plain


LIMITS = (0.0, 0.1, 0.2, 0.4, 0.5, 0.7)  # of attention, where more than 0.3 is asked for


@functools.cache
def _effects() -> dict[str, Tensor]:
    """What each head of seed 1 does to the logit of the word that it attends to, [layer, head], and what slips give."""
    names = ("mean", "unscaled", "unfolded", "median", *(f"{limit}" for limit in LIMITS))
    model, cfg = load("tinyworld", seed=1), tinyworld.CONFIG
    p, rows = model.state_dict(), tinyworld.batch(random.Random(789), tinyworld.TOKENIZER, 400)
    _, cache = run_with_cache(model, rows, lambda name: name.endswith(("pattern", "hook_z", "ln_final.hook_scale")))
    unembed = p["unembed.W_U"] - p["unembed.W_U"].mean(dim=1, keepdim=True)
    found = torch.zeros(len(names), cfg.n_layers, cfg.n_heads)
    for layer, head in itertools.product(range(cfg.n_layers), range(cfg.n_heads)):
        at = f"blocks.{layer}"
        constant = p[f"{at}.ln1.b"] @ p[f"{at}.attn.W_V"][head] + p[f"{at}.attn.b_V"][head]  # wherever it attends
        weight, key = cache["pattern", layer][:, head].tril(-1)[..., 1:].max(dim=-1)
        reads, scale = unembed.T[rows.gather(1, key + 1)], cache["ln_final.hook_scale"][..., 0]
        written = (cache["z", layer][:, :, head] - constant) @ p[f"{at}.attn.W_O"][head]
        written = written - written.mean(dim=-1, keepdim=True)
        whole, plain = (written * p["ln_final.w"] * reads).sum(dim=-1), (written * reads).sum(dim=-1)
        asked, effect = weight > 0.3, whole / scale
        results = [effect[asked].mean(), whole[asked].mean(), (plain / scale)[asked].mean(), effect[asked].median()]
        found[:, layer, head] = torch.stack([*results, *(effect[weight > limit].mean() for limit in LIMITS)])
    return dict(zip(names, found, strict=True))


@exercise("From the weights, then on data")
def negative(answer: Any, judge: Judge) -> None:
    _entries(judge, answer, "layer", "head", "score", "effect")
    layer, head = here = _a_head(judge, answer, tinyworld.CONFIG)
    score, effect = (float(_number(judge, answer[name], f"the {name}")) for name in ("score", "effect"))
    table, name = _copying(1)[0], f"L{layer}H{head}"
    own, lowest, truth = float(table[here]), float(table.min()), float(_effects()["mean"][here])
    seen, there = f"{name}, whose score in the model of seed 1 is {own:.2f}", f"there is one with {lowest:.2f}"
    likely = _first(_why_that_head(here, score))
    judge.that(own < lowest + 0.05, "the head with the lowest score", seen=seen, expected=there, likely=likely)
    likely = "the sum of the eigenvalues of its full OV circuit over the sum of their sizes"
    likely = "the sign: negative eigenvalues lower logits" if abs(score + own) < 0.05 else likely
    judge.that(abs(score - own) < 0.05, f"the copying score of {name}", seen=score, expected=own, likely=likely)
    tolerance = max(0.05, 0.29 * abs(truth))  # for samples of 20 rows and more
    claim = f"the mean effect of {name} on the logit of the word that it attends to"
    there, likely = f"{truth:.2f}, give or take {tolerance:.2f}", _why_that_effect(here, effect, tolerance)
    judge.that(abs(effect - truth) < tolerance, claim, seen=effect, expected=there, likely=likely)


def _why_that_head(here: tuple[int, int], score: float) -> Reasons:
    """What led to a head that is not the one with the lowest score."""
    (table, plain), turned = _copying(1), here[::-1]
    other = {seed: _copying(seed)[0] for seed in (0, 2) if abs(score - table[here]) > 0.05}
    inside = turned[0] < table.shape[0] and turned[1] < table.shape[1]
    return {
        **{f"in the model of seed {i} it is this one: take seed 1": t[here] == t.min() for i, t in other.items()},
        "layer and head exchanged?": inside and table[turned] < table.min() + 0.05,
        "its score is one of the highest: the lowest is asked for": table[here] > table.max() - 0.01,
        "W_V W_O has negative eigenvalues here, but W_E comes before it and W_U behind it": plain[here] < -0.9,
        "copying_score(full_ov(model, layer, head, model.embed.W_E)) of every head, and the lowest of all": True,
    }


def _why_that_effect(here: tuple[int, int], effect: float, tolerance: float) -> str:
    """What led to an effect that is not this head's mean effect."""
    own = {kind: float(table[here]) for kind, table in _effects().items()}
    kinds = {
        "this may be the median: the mean is asked for": own["median"],
        "the last LayerNorm's division is missing: W_U reads the stream over its scale": own["unscaled"],
        "LayerNorm is not folded: what W_U reads lacks its weights": own["unfolded"],
        "this is the score again: the effect is measured on rows of the corpus": float(_copying(1)[0][here]),
        **{f"queries with more than {x} of the attention are taken: 0.3 is asked for": own[f"{x}"] for x in LIMITS},
    }
    near = {text: abs(effect - value) for text, value in kinds.items()}
    near = {text: gap for text, gap in near.items() if gap < max(0.007, 0.05 * abs(kinds[text]))}
    gaps = (_effects()["mean"] - effect).abs()
    layer, head = divmod(int(gaps.argmin()), gaps.shape[1])
    reasons = {
        "the sign: this head lowers the logit of what it attends to": abs(effect + own["mean"]) < tolerance,
        "; or ".join(sorted(near, key=lambda text: near[text])[:2]): near,
        f"that is about the effect of L{layer}H{head}: take that of your head": gaps.min() < 0.05 * abs(effect),
        "a mean over queries is asked for, not their sum": abs(effect) > 5,
        "effect_on_attended(model, rows)[layer, head], its 0.3 untouched, with 100 rows and the model of seed 1": True,
    }
    return _first(reasons)


GPT2_SMALL = Config(n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_vocab=50257, d_mlp=3072)
NAME_MOVERS = ((9, 9), (9, 6), (10, 0))


@functools.cache
def _read_by_name_movers() -> dict[str, Tensor]:
    """What the three read of every head of layers 0 to 8, [name mover, layer, head], by side; and with axes turned."""
    tables = {name[0]: table for name, table in weights.load("gpt2_attention").items() if table.ndim == 4}
    tables["turned"] = tables["q"].permute(2, 3, 0, 1)
    return {name: torch.stack([table[:9, :, *head] for head in NAME_MOVERS]) for name, table in tables.items()}


@exercise("The real GPT-2")
def speaker(answer: Any, judge: Judge) -> None:
    _entries(judge, answer, "layer", "head", "times_baseline")
    layer, head = here = _a_head(judge, answer, GPT2_SMALL)
    read = {name: table * math.sqrt(768) for name, table in _read_by_name_movers().items()}
    mean = read["q"].mean(dim=0)
    turned = head < 9 and bool(mean[head, layer] == mean.max())
    exchanged = "layer and head exchanged?" if turned else "the table is [layer, head, layer, head], sender first"
    judge.that(layer < 9, "a head of layers 0 to 8", seen=f"L{layer}H{head}", likely=exchanged)
    reasons: Reasons = {
        "layer and head exchanged?": turned,
        "average over the three name movers, then take the head with the largest": True,
    }
    slips = {
        "the axes are exchanged: the sender comes first": read["turned"],
        "their keys read this one most: take q_composition, not k_composition": read["k"],
        "their values read this one most: take q_composition, not v_composition": read["v"],
    }
    reasons = {text: table.mean(0)[here] == table.mean(0).max() for text, table in slips.items()} | reasons
    seen = f"L{layer}H{head} is in place {1 + int((mean > mean[here]).sum())}, with {mean[here]:.2f} times the baseline"
    claim = "the head that the queries of the three name movers read most, on average"
    judge.that(mean[here] == mean.max(), claim, seen=seen, likely=_first(reasons))
    times, best = float(_number(judge, answer["times_baseline"], "times_baseline")), float(mean.max())
    three = read["q"][:, layer, head]
    others = float(three.square().mean().sqrt()), float(three.log().mean().exp())
    blurred = min(abs(times - value) for value in others) < 5e-5
    alone = "alone reads, or a median or maximum: the mean of the three is asked for"
    values = {
        "this is the sum over the three: their mean is asked for": 3 * best,
        "this is the score itself: divide it by the baseline, 1/sqrt(768)": best / math.sqrt(768),
        "this is the inverse, or the baseline of d_head: divide the score by 1/sqrt(768)": 1 / best,
        "this is in percent: the plain ratio is asked for": 100 * best,
        "divided by the mean of all heads: the baseline is 1/sqrt(768)": best / float(mean.mean()),
        "this is how much more than the baseline it is: divide by the baseline, and subtract nothing": best - 1,
        "this is for the head that comes second": float(mean.flatten().sort().values[-2]),
        **{f"this is what L{i}H{j} {alone}": float(v) for (i, j), v in zip(NAME_MOVERS, three, strict=True)},
    }
    reasons = {text: abs(times - value) < 0.005 * value for text, value in values.items()}
    ok = abs(times - best) < 0.02 and not blurred
    ok, claim = ok or abs(times - round(best, 1)) < 1e-6, "their mean, over the baseline"
    likely = "a root mean square, or a geometric mean: the plain mean is asked for" if blurred else _first(reasons)
    judge.that(ok, claim, seen=times, expected=best, likely=likely)


STATEMENTS = {
    "a": (True, "W_Q W_K^T goes through d_head dimensions, so its rank is no larger"),
    "b": (False, "scores depend on the product of the two only: twice the one and half the other changes nothing"),
    "c": (False, "what a position contributes is its weight times its value, and a value may be almost zero"),
    "d": (False, "the score knows neither how much is written nor what stands in the stream: run it and see"),
    "e": (False, "random directions overlap a little: unrelated heads score about 1/sqrt(d_model)"),
    "f": (True, "before layer 0 nothing has been written into the stream but the embeddings"),
    "g": (True, "what is written depends on the attended word alone, not on which destination asked"),
    "h": (False, "the directions match; whether anything is sent along them, only an intervention tells"),
}


@exercise("Two matrices")
def statements(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)
