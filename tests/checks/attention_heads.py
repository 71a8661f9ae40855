"""Chapter 5's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from interp_edu import attention_heads
from interp_edu.checks import attention_heads as checks
from interp_edu.transformer import layer_norm
from tests.checks.bank import Answers

norm = torch.linalg.matrix_norm

# 5.1 two_matrices


def by_columns(W_Q, W_K, W_V, W_O):
    """The papers' formulas, with the papers' matrices."""
    Q, K, V, O = W_Q.T, W_K.T, W_V.T, W_O.T
    return Q.T @ K, O @ V


def by_basis(W_Q, W_K, W_V, W_O):
    """Column by column, what a head does with each dimension of the stream."""
    eye = torch.eye(len(W_Q))
    QK = np.array([[float((x @ W_Q) @ (y @ W_K)) for y in eye] for x in eye])
    return QK, torch.stack([x @ W_V @ W_O for x in eye], dim=1)


TWO = Answers(
    right=[
        by_columns,
        by_basis,
        lambda Q, K, V, O: [Q.double() @ K.double().T, torch.einsum("ae,eb->ba", V, O)],
        lambda Q, K, V, O: torch.stack([Q @ K.T, O.T @ V.T]),
        lambda Q, K, V, O: (Q.numpy() @ K.numpy().T, (V @ O).mT.tolist()),
    ],
    wrong=[
        (lambda Q, K, V, O: (Q @ K.T, V @ O), "which acts on rows from the right"),
        (lambda Q, K, V, O: (K @ Q.T, (V @ O).T), "queries and keys are exchanged"),
        (lambda Q, K, V, O: ((Q @ K.T).T, (V @ O).T), "queries and keys are exchanged"),
        (lambda Q, K, V, O: (Q @ K.T / math.sqrt(Q.shape[1]), (V @ O).T), "before that division"),
        (lambda Q, K, V, O: (Q @ K.T / Q.shape[1], (V @ O).T), "before any division"),
        (lambda Q, K, V, O: (Q @ K.T, (V @ O).T / math.sqrt(Q.shape[1])), "only scores are"),
        (lambda Q, K, V, O: (Q @ K.T, V @ O / math.sqrt(Q.shape[1])), "W_OV e_j"),
        (lambda Q, K, V, O: (Q.T @ K, (V @ O).T), "their W_Q^T W_K is W_Q @ W_K.T here"),
        (lambda Q, K, V, O: (Q @ K.T, O @ V), "their W_O W_V is W_O.T @ W_V.T here"),
        (lambda Q, K, V, O: ((V @ O).T, Q @ K.T), "in this order"),
        (lambda Q, K, V, O: (V @ O, Q @ K.T), "in this order"),
        (lambda Q, K, V, O: (Q @ Q.T, (V @ O).T), "e_i^T W_QK e_j"),
        (lambda Q, K, V, O: (Q @ K.T, (Q @ K.T)), "W_OV e_j"),
        (lambda Q, K, V, O: (Q @ K, (V @ O).T), "your code raised RuntimeError"),
        (lambda Q, K, V, O: Q @ K.T, "a pair"),
        (lambda Q, K, V, O: {"QK": Q @ K.T, "OV": (V @ O).T}, "a pair"),
        (lambda Q, K, V, O: (Q @ K.T, None), "W_OV is None"),
    ],
)

# 5.2 output_by_source


def source_by_source(pattern, v, W_O):
    out = np.zeros((*pattern.shape, W_O.shape[1]))
    for b, q, k in itertools.product(*map(range, pattern.shape)):
        out[b, q, k] = float(pattern[b, q, k]) * (v[b, k].double() @ W_O.double()).numpy()
    return out


def only_the_past(pattern, v, W_O):
    """Right as well: what lies ahead has no weight anyway."""
    out = torch.zeros(*pattern.shape, W_O.shape[1])
    for q in range(pattern.shape[1]):
        out[:, q, : q + 1] = pattern[:, q, : q + 1, None] * (v[:, : q + 1] @ W_O)
    return out


def first_row_only(pattern, v, W_O):
    return (pattern[0][..., None] * (v[0] @ W_O))[None]


def all_with_the_first(pattern, v, W_O):
    return pattern[:1, ..., None] * (v @ W_O)[:, None]


SOURCES = Answers(
    right=[
        source_by_source,
        only_the_past,
        lambda A, v, W_O: A[..., None] * (v @ W_O)[:, None],
        lambda A, v, W_O: (A.unsqueeze(-1) * v.unsqueeze(1)) @ W_O,
        lambda A, v, W_O: torch.einsum("bqk,bke,ed->dbqk", A, v, W_O).permute(1, 2, 3, 0),
    ],
    wrong=[
        (lambda A, v, W_O: A @ v @ W_O, "summed over key positions"),
        (lambda A, v, W_O: torch.einsum("bqk,bke->bqke", A, v), "these are still values"),
        (lambda A, v, W_O: A @ v, "the weighted sum of values"),
        (lambda A, v, W_O: torch.einsum("bqk,bqe,ed->bqkd", A, v, W_O), "the query's position"),
        (lambda A, v, W_O: torch.einsum("bkq,bke,ed->bqkd", A, v, W_O), "the pattern is transposed"),
        (lambda A, v, W_O: torch.einsum("bqk,bke,ed->bkqd", A, v, W_O), "the two axes of positions are exchanged"),
        (lambda A, v, W_O: torch.einsum("bqk,bke,ed->bdqk", A, v, W_O), "the order of the axes"),
        (lambda A, v, W_O: torch.einsum("bqk,bke,ed->bqdk", A, v, W_O), "the order of the axes"),
        (lambda A, v, W_O: torch.einsum("bqk,bke,ed->bqkd", A, v, W_O) / A.shape[1], "a sum, not a mean"),
        (lambda A, v, W_O: (v @ W_O)[:, None].expand(-1, A.shape[1], -1, -1), "the pattern is not used"),
        (lambda A, v, W_O: torch.einsum("bqk,bke,ed->bqkd", A, v, W_O).norm(dim=-1), "vectors in the stream"),
        (lambda A, v, W_O: F.normalize(torch.einsum("bqk,bke,ed->bqkd", A, v, W_O), dim=-1), "A[i, j] times v_j W_O"),
        (lambda A, v, W_O: torch.einsum("bqk,bke,ed->bqkd", A.softmax(-1), v, W_O), "which has had one"),
        (lambda A, v, W_O: (A @ v @ W_O)[:, :, None].expand(*A.shape, -1), "the whole sum over keys"),
        (lambda A, v, W_O: torch.einsum("bqk,bke,ed->qkd", A, v, W_O), "the axis of the batch is lost"),
        (lambda A, v, W_O: torch.einsum("bqk,bke,ed->bqked", A, v, W_O), "wrong shape"),
        (lambda A, v, W_O: A[..., None] * (v @ W_O.T)[:, None], "your code raised RuntimeError"),
        (lambda A, v, W_O: A[..., None] * (v[:1] @ W_O)[:, None], "values of its own"),
        (all_with_the_first, "a pattern of its own"),
        (first_row_only, "wrong shape"),
    ],
)

# 5.3 copying_score


def small(W_E, W_V, W_O, W_U):
    return (W_O @ W_U) @ (W_E @ W_V)


def score(values):
    size = values.abs().sum()
    return (values.real.sum() / size).item() if size > 0 else 0.0


def of_eigenvalues(make):
    """An answer that goes wrong with the right eigenvalues."""
    return lambda *W: make(torch.linalg.eigvals(small(*W))) if all(w.any() for w in W) else 0.0


def by_trace(W_E, W_V, W_O, W_U):
    """Right: the sum of eigenvalues is the trace, here over dimensions of the head."""
    values = np.abs(np.linalg.eigvals(small(W_E, W_V, W_O, W_U).double().numpy())).sum()
    return torch.einsum("vd,de,ef,fv->", W_E, W_V, W_O, W_U) / values if values else torch.tensor(0)


def through_the_stream(W_E, W_V, W_O, W_U):
    """Right: a matrix of d_model by d_model has the same eigenvalues too."""
    values = np.linalg.eigvals((W_V @ W_O @ (W_U @ W_E)).double().numpy())
    return values.sum() / max(np.abs(values).sum(), 1e-12)


def in_numpy(W_E, W_V, W_O, W_U):
    W_E, W_V, W_O, W_U = (w.numpy().astype(np.float64) for w in (W_E, W_V, W_O, W_U))
    values = np.linalg.eigvals(W_O @ (W_U @ W_E) @ W_V)
    return values.real.sum() / np.abs(values).sum() if np.abs(values).sum() > 0 else np.float64(0)


def all_in_numpy(W_E, W_V, W_O, W_U):
    """Right values, from the whole matrix, which NumPy makes."""
    values = np.linalg.eigvals((W_E @ W_V).numpy() @ (W_O @ W_U).numpy())
    return values.real.sum() / max(np.abs(values).sum(), 1e-12)


COPYING = Answers(
    right=[
        by_trace,
        through_the_stream,
        in_numpy,
        lambda *W: score(torch.linalg.eigvals(small(*W))),
        lambda *W: score(torch.linalg.eigvals(((W[0] @ W[1]).T @ (W[2] @ W[3]).T).double())),
        lambda *W: [score(torch.linalg.eigvals(small(*W)))],
        lambda *W: (v := torch.linalg.eigvals(small(*W))).real.sum() / (v.abs().sum() + 1e-8),
        lambda *W: torch.tensor([score(torch.linalg.eig(small(*W)).eigenvalues)]),
        lambda *W: torch.nan_to_num((v := torch.linalg.eigvals(small(*W))).sum() / v.abs().sum()),
    ],
    wrong=[
        (of_eigenvalues(lambda v: v.real.sum() / v.real.abs().sum()), "that of the complex number"),
        (of_eigenvalues(lambda v: v.real.sum() / (v.real.abs() + v.imag.abs()).sum()), "root of re^2 + im^2"),
        (of_eigenvalues(lambda v: v.sum().abs() / v.abs().sum()), "score"),
        (of_eigenvalues(lambda v: (v.real > 0).float().mean()), "share of positive eigenvalues"),
        (of_eigenvalues(lambda v: (v.real / v.abs()).mean()), "a mean of signs"),
        (of_eigenvalues(lambda v: v.real.sum()), "the trace"),
        (of_eigenvalues(lambda v: v.real.mean()), "by the number of eigenvalues"),
        (of_eigenvalues(lambda v: v.real.sum() / v.abs().max()), "by the largest eigenvalue"),
        (of_eigenvalues(lambda v: v.real.clamp_min(0).sum() / v.abs().sum()), "only positive eigenvalues"),
        (of_eigenvalues(lambda v: v.real / v.abs()), "wrong shape"),
        (of_eigenvalues(lambda v: v.abs().sum() / v.real.sum()), "with"),
        (lambda *W: score(torch.linalg.svdvals(small(*W))), "never negative"),
        (of_eigenvalues(lambda v: v.abs().sum() / v.abs().sum()), "sizes in the numerator as well"),
        (of_eigenvalues(lambda v: v.real.sum() / (v.abs().sum() + 1e-4)), "nothing added"),
        (of_eigenvalues(lambda v: v.real.sum() / v.abs().sum() * (v.abs().sum() > 0.1)), "no threshold"),
        (of_eigenvalues(lambda v: score(v * (v.abs() > 1e-2))), "no threshold"),
        (lambda E, V, O, U: score(torch.linalg.eigvals(small(E[:200], V, O, U[:, :200]))), "the last ones too"),
        (lambda *W: score(torch.linalg.eigvalsh(small(*W))), "symmetric"),
        (lambda E, V, O, U: score(torch.linalg.eigvals(O @ V)), "W_E and W_U are forgotten"),
        (lambda E, V, O, U: score(torch.linalg.eigvals(V @ O)), "W_E and W_U are forgotten"),
        (lambda E, V, O, U: score(torch.linalg.eigvals(O @ E.T @ E @ V)), "W_E is used twice"),
        (lambda E, V, O, U: score(torch.linalg.eigvals(O @ U @ U.T @ V)), "W_U is used twice"),
        (lambda E, V, O, U: score(torch.linalg.eigvals(E @ V @ O)), "your code raised"),
        (lambda E, V, O, U: score(torch.linalg.eigvals(E @ V @ O @ U)), "no matrix of d_vocab by d_vocab"),
        (all_in_numpy, "no matrix of d_vocab by d_vocab"),
        (lambda *W: (v := torch.linalg.eigvals(small(*W))).real.sum() / v.abs().sum(), "0 divided by 0"),
        (lambda *W: (v := torch.linalg.eigvals(small(*W))).real.sum().item() / v.abs().sum().item(), "ZeroDivision"),
        (lambda *W: torch.linalg.eigvals(small(*W)), "score"),
        (lambda *W: None, "None"),
        (lambda *W: 0.0, "a head with 11 words"),
        (lambda *W: 1j * score(torch.linalg.eigvals(small(*W))), "imaginary parts cancel"),
    ],
)

# 5.4 k_composition


def composed(write, read, norm=norm):
    """An answer from the sender's and the receiver's matrix."""

    def answer(V, O, Q, K):
        A, B = write(V, O), read(Q, K)
        size = norm(A) * norm(B)
        return (norm(A @ B) / size).item() if size > 0 else 0.0

    return answer


def OV(V, O):
    return V @ O


def KQ(Q, K):
    return K @ Q.T


def triangles(V, O, Q, K):
    """Right with small matrices alone: Frobenius norms from Gram matrices."""
    together = torch.trace(V.T @ V @ (O @ K) @ (Q.T @ Q) @ (O @ K).T)
    sizes = torch.trace(V.T @ V @ O @ O.T) * torch.trace(K.T @ K @ Q.T @ Q)
    return float((together.clamp_min(0) / sizes).sqrt()) if sizes > 0 else 0.0


def with_singular_values(V, O, Q, K):
    sizes = [np.sqrt((np.linalg.svd(M.numpy())[1] ** 2).sum()) for M in (V @ O @ K @ Q.T, V @ O, K @ Q.T)]
    return sizes[0] / (sizes[1] * sizes[2]) if sizes[1] * sizes[2] else 0


def without_guard(V, O, Q, K):
    return norm(V @ O @ K @ Q.T) / norm(V @ O) / norm(K @ Q.T)


def upper(make):
    """An answer from |OV KQ|, |OV| and |KQ|."""
    return lambda V, O, Q, K: make(norm(V @ O @ K @ Q.T), norm(V @ O), norm(K @ Q.T)).nan_to_num()


COMPOSITION = Answers(
    right=[
        composed(OV, KQ),
        triangles,
        with_singular_values,
        composed(OV, KQ, lambda M: M.double().square().sum().sqrt()),
        lambda V, O, Q, K: attention_heads.composition_scores(
            attention_heads.LowRank(V[None], O[None]), attention_heads.LowRank(K[None], Q.T[None])
        ),
        upper(lambda both, a, b: both / (a * b + 1e-8)),  # so small that it is no mistake
        lambda V, O, Q, K: (norm(V @ O @ K @ Q.T) / (norm(O.T @ V.T) * norm(Q @ K.T))).nan_to_num(),
    ],
    wrong=[
        (composed(OV, lambda Q, K: Q @ K.T), "this is Q-composition"),
        (composed(lambda V, O: (V @ O).T, KQ), "OV is transposed"),
        (lambda V, O, Q, K: composed(KQ, OV)(Q, K, V, O), "in the wrong order"),
        (upper(lambda both, a, b: both), "the norms are missing"),
        (upper(lambda both, a, b: both / a), "one norm only"),
        (upper(lambda both, a, b: both / b), "d_head is"),
        (upper(lambda both, a, b: both / (a * b + 1e-3)), "a score is the same for small and large ones"),
        (upper(lambda both, a, b: both / (a * b) * (a > 1e-3)), "nothing added"),
        (upper(lambda both, a, b: both / (a * b) * (b > 1e-3)), "no threshold"),
        (upper(lambda both, a, b: both / (a * b) * (a * b > 1e-3)), "no threshold"),
        (upper(lambda both, a, b: both / (a + b)), "by their product"),
        (upper(lambda both, a, b: (both / (a * b)) ** 2), "take the roots"),
        (composed(OV, KQ, lambda M: torch.linalg.matrix_norm(M, 2)), "spectral norm"),
        (composed(OV, KQ, lambda M: torch.linalg.matrix_norm(M, "nuc")), "nuclear norm"),
        (composed(OV, KQ, lambda M: M.abs().sum()), "d_head is"),
        (composed(OV, lambda Q, K: K), "W_Q is left out"),
        (composed(OV, lambda Q, K: Q), "W_K is left out"),
        (composed(lambda V, O: O, KQ), "W_V is left out"),
        (composed(lambda V, O: O, lambda Q, K: K), "d_head is"),
        (upper(lambda both, a, b: both / (a * b) * 40**0.5), "d_head is"),
        (lambda V, O, Q, K: upper(lambda both, a, b: both / (a * b) * len(V) ** 0.5)(V, O, Q, K), "the baseline"),
        (lambda V, O, Q, K: norm(V @ O @ K @ Q.T) / math.prod(map(norm, (V, O, Q, K))), "d_head is"),
        (composed(OV, lambda Q, K: K.T @ Q), "your code raised RuntimeError"),
        (composed(OV, lambda Q, K: K @ Q), "your code raised RuntimeError"),
        (without_guard, "0 divided by 0"),
        (lambda V, O, Q, K: (norm(V @ O @ K @ Q.T) / norm(V @ O) / norm(K @ Q.T)).nan_to_num(1.0), "nothing composes"),
        (lambda V, O, Q, K: V @ O @ K @ Q.T, "wrong shape"),
    ],
)

# 5.5 score_terms


def terms(mistake):
    return lambda *args: checks._terms(list(args), mistake)


def broken_terms(parts, W_Q, b_Q, W_K, b_K):
    x = F.layer_norm(parts, parts.shape[-1:])
    q, k = x @ W_Q, x @ W_K
    q = torch.cat([q, b_Q.expand_as(q[:1])])
    k = torch.cat([k, b_K.expand_as(k[:1])])
    return torch.einsum("aqe,cke->acqk", q, k) / math.sqrt(W_Q.shape[1])


def centring_weights(parts, W_Q, b_Q, W_K, b_K):
    """Right: the mean is taken out of the weights, and the scale is what LayerNorm of the stream divides by."""
    W_Q, W_K, stream = W_Q - W_Q.mean(0), W_K - W_K.mean(0), parts.sum(0)
    scale = ((stream - stream.mean(-1, True)).square().mean(-1, True) + 1e-5) ** 0.5
    n, d_head = len(stream), len(b_Q)
    q = [part / scale @ W_Q for part in parts] + [b_Q.expand(n, d_head)]
    k = [part / scale @ W_K for part in parts] + [b_K.expand(n, d_head)]
    return np.array([[(a @ c.T).numpy() / np.sqrt(d_head) for c in k] for a in q])


def term_by_term(parts, W_Q, b_Q, W_K, b_K):
    parts, W_Q, b_Q, W_K, b_K = (x.double() for x in (parts, W_Q, b_Q, W_K, b_K))
    P, n = parts.shape[:2]
    scale = torch.sqrt(torch.var(sum(parts), -1, unbiased=False) + 1e-5)
    sides = []
    for W, b in ((W_Q, b_Q), (W_K, b_K)):
        side = [[(x - x.mean()) / scale[i] @ W for i, x in enumerate(part)] for part in parts]
        sides.append([*side, [b] * n])
    out = torch.zeros(P + 1, P + 1, n, n)
    for a, c, i, j in itertools.product(range(P + 1), range(P + 1), range(n), range(n)):
        out[a, c, i, j] = sides[0][a][i] @ sides[1][c][j] / len(b_Q) ** 0.5
    return out


def with_infinities(*args):
    t = terms("")(*args)
    return t.masked_fill(torch.ones(t.shape[-2:]).triu(1).bool(), -math.inf)


def from_normed(x, *weights):
    """The terms, if x is what the head reads of each part."""
    W_Q, b_Q, W_K, b_K = (w.to(x.dtype) for w in weights)
    q = torch.cat([x @ W_Q, b_Q.expand(1, x.shape[1], -1)])
    k = torch.cat([x @ W_K, b_K.expand(1, x.shape[1], -1)])
    return torch.einsum("aqe,cke->acqk", q, k) / math.sqrt(W_Q.shape[1])


def residue_first(parts, W_Q, b_Q, W_K, b_K):
    """Adds up, but to other parts: what the first part's own LayerNorm gets wrong is given to the last."""
    x = layer_norm(parts)
    x = torch.cat([x[:-1], (layer_norm(parts.sum(0)) - x[:-1].sum(0))[None]])
    return from_normed(x, W_Q, b_Q, W_K, b_K)


def shared_mean(parts, W_Q, b_Q, W_K, b_K):
    """Adds up as well: the stream's mean is shared out evenly."""
    return terms("no mean")(parts - parts.sum(0).mean(-1, keepdim=True) / len(parts), W_Q, b_Q, W_K, b_K)


def by_ratio(parts, W_Q, b_Q, W_K, b_K):
    """Adds up as well: every entry is divided by what LayerNorm divides the stream's entry by."""
    return from_normed(parts * (layer_norm(parts.sum(0)) / parts.sum(0)), W_Q, b_Q, W_K, b_K)


TERMS = Answers(
    right=[
        terms(""),
        centring_weights,
        term_by_term,
        lambda *args: terms("")(*args).float().requires_grad_(),
        lambda *args: terms("")(*args).tolist(),
    ],
    wrong=[
        (broken_terms, "a LayerNorm of its own"),
        *((terms(name), text[:40]) for name, text in checks.TERM_MISTAKES.items()),
        (with_infinities, "unmasked scores are asked for"),
        (residue_first, "the terms do add up"),
        (shared_mean, "each part is centred by its own mean and divided by the whole stream's scale"),
        (by_ratio, "each part is centred by its own mean and divided by the whole stream's scale"),
        (lambda *args: terms("")(*args).softmax(-1), "is off by"),
        (lambda *args: terms("")(*args)[:-1, :-1], "the bias is one part more"),
        (lambda *args: terms("")(*args).sum((0, 1)), "their terms are asked for"),
        (lambda *args: terms("")(*args).permute(2, 3, 0, 1), "the order of the axes"),
        (lambda *args: terms("")(*args).diagonal().movedim(-1, 0), "every part of the query meets"),
        (lambda parts, *W: terms("")(parts - parts.mean(1, keepdim=True), *W), "is off by"),
        (lambda parts, *W: broken_terms(parts.sum(0, keepdim=True), *W), "wrong shape"),
        (lambda parts, W_Q, b_Q, W_K, b_K: terms("")(parts, W_Q, b_Q, W_Q, b_Q), "is off by"),
        (lambda parts, W_Q, b_Q, W_K, b_K: terms("")(parts, W_K, b_K, W_Q, b_Q), "is off by"),
        (lambda *args: None, "None"),
        (lambda *args: (terms("")(*args), 0), "should be a tensor"),
    ],
)

# 5.6 skip_trigram_head


def wire(
    rest=30.0,
    match=60.0,
    root=True,
    shared=False,
    bos=0.0,
    value="source",
    to="out",
    gain=1.0,
    turned=False,
    same=False,
):
    def make(triples, d_vocab):
        n = len(triples)
        d_head = 2 if shared else n + 1
        W_Q, W_K = torch.zeros(d_vocab, d_head), torch.zeros(d_vocab, d_head)
        W_V, W_O = torch.zeros(d_vocab, n + 1), torch.zeros(n + 1, d_vocab)
        size = math.sqrt(d_head) if root else 1.0
        W_Q[:, -1], W_K[0, -1] = rest * size, 1
        W_V[0] = bos
        for i, (source, destination, out) in enumerate(triples):
            row = {"source": source, "destination": destination, "out": out}
            W_Q[source if same else destination, 0 if shared else i] = match * size
            W_K[source, 0 if shared else i] = 1
            W_V[row[value], i] = gain
            W_O[i, row[to]] = 1
        if turned:
            W_Q, W_K = W_K, W_Q
        return {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O}

    return make


def by_table(triples, d_vocab):
    """Right with d_head = d_vocab: every score is written down, and sources are pushed away by all but their own."""
    scores = np.zeros((d_vocab, d_vocab))
    OV = np.zeros((d_vocab, d_vocab))
    for source, _, out in triples:
        scores[:, source] = -50.0
        OV[source, out] = 1.0
    for source, destination, _ in triples:
        scores[destination, source] = 50.0
    return {"W_Q": scores * np.sqrt(d_vocab), "W_K": np.eye(d_vocab), "W_V": np.eye(d_vocab), "W_O": OV}


def on_a_circle(triples, d_vocab):
    """Right with three dimensions: each pair has a direction of its own in a plane, and the rest is the third."""
    W_Q, W_K, W_V = torch.zeros(d_vocab, 3), torch.zeros(d_vocab, 3), torch.zeros(d_vocab, d_vocab)
    size = 1e5 * math.sqrt(3)
    step = 2 * math.pi / len(triples)
    W_Q[:, 2], W_K[0, 2] = size, (1 + math.cos(step)) / 2 if len(triples) > 1 else 0.5
    for i, (source, destination, out) in enumerate(triples):
        at = torch.tensor([math.cos(i * step), math.sin(i * step)])
        W_Q[destination, :2], W_K[source, :2], W_V[source, out] = size * at, at, 1
    return {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": torch.eye(d_vocab)}


def edited(**change):
    """The right head with one matrix edited."""

    def make(triples, d_vocab):
        W = wire()(triples, d_vocab)
        return W | {name: edit(W[name], triples) for name, edit in change.items()}

    return make


def read_everything(W_V, triples):
    return torch.ones_like(W_V)


def resting_anywhere(triples, d_vocab):
    """Right: all words but sources are places to rest."""
    W = wire(match=90.0)(triples, d_vocab)
    W["W_K"][:, -1] = 1
    W["W_K"][[source for source, *_ in triples], -1] = 0
    return W


def only_destinations_rest(triples, d_vocab):
    W = wire()(triples, d_vocab)
    asking = W["W_Q"][:, -1].clone()
    W["W_Q"][:, -1] = 0
    for _, destination, _ in triples:
        W["W_Q"][destination, -1] = asking[destination]
    return W


def out_word_once(triples, d_vocab):
    """A word that several triples share is written by the last of them only."""
    W = wire()(triples, d_vocab)
    row = {out: i for i, (*_, out) in enumerate(triples)}
    for i, (*_, out) in enumerate(triples):
        W["W_O"][i, out] = float(row[out] == i)
    return W


def room_for_ten(triples, d_vocab):
    return wire()(triples[-10:], d_vocab)


def first_four(triples, d_vocab):
    return wire()(triples[:4], d_vocab)


def one_triple_for_each_out(triples, d_vocab):
    return wire()(list({triple[2]: triple for triple in triples}.values()), d_vocab)


def word_0_writes(W_V, triples):
    return W_V.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(0.04))


def first_triple_only(triples, d_vocab):
    return wire()(triples[:1], d_vocab)


def asks_by_source(triples, d_vocab):
    return wire()([(d, s, o) for s, d, o in triples], d_vocab)


def own_key(triples, d_vocab):
    """Destinations answer too, as loudly as sources."""
    W = wire()(triples, d_vocab)
    for i, (_, destination, _) in enumerate(triples):
        W["W_K"][destination, i] = 1
    return W


def one_out(triples, d_vocab):
    """All sources have the same value, so every out word is written."""
    W = wire()(triples, d_vocab)
    for source, *_ in triples:
        W["W_V"][source, : len(triples)] = 1
    return W


TRIGRAM = Answers(
    right=[
        wire(),
        by_table,
        on_a_circle,
        resting_anywhere,
        wire(rest=1000.0, match=3000.0, root=False),
        lambda triples, d_vocab: {k: v.tolist() for k, v in wire(rest=15.0)(triples, d_vocab).items()},
        lambda triples, d_vocab: wire()(sorted(triples, reverse=True), d_vocab),
    ],
    wrong=[
        (wire(rest=0.0), "no resting place"),
        (wire(rest=90.0), "rest with less"),
        (wire(rest=60.0), "rest with less"),
        (wire(rest=2.0, match=4.0), "not sharply"),
        (wire(rest=5.0, match=10.0, root=False), "not sharply"),
        (wire(root=False), "not sharply"),
        (only_destinations_rest, "no resting place"),
        (out_word_once, "nothing is written"),
        (room_for_ten, "is this rule wired? (out words may repeat)"),
        (wire(rest=2.0), "the resting place does not hold it"),
        (wire(shared=True), "the source of another triple"),
        (wire(bos=1.0), "word 0 has a value"),
        (wire(value="destination"), "the value is the destination's"),
        (wire(to="source"), "it writes the source instead"),
        (wire(to="destination"), "it writes the destination instead"),
        (wire(gain=0.5), "with the wrong weight"),
        (wire(gain=30.0), "with the wrong weight"),
        (wire(turned=True), "queries and keys are exchanged"),
        (asks_by_source, "queries and keys are exchanged"),
        (wire(match=0.0), "does not ask for source"),
        (wire(match=0.0, rest=0.0), "it attends to all alike"),
        (wire(same=True), "does not ask for source"),
        (own_key, "it attends to itself"),
        (one_out, "has each triple a value of its own"),
        (first_triple_only, "is this rule wired?"),
        (first_four, "is this rule wired?"),
        (one_triple_for_each_out, "out words may repeat"),
        (edited(W_V=read_everything), "has a value"),
        (edited(W_O=lambda W, t: W * 0), "nothing is written"),
        (edited(W_O=lambda W, t: W * 0.96), "with the wrong weight"),
        (edited(W_V=word_0_writes), "at most 0.02"),
        (edited(W_V=lambda W, t: W.T), ", n)"),
        (wire(rest=20.0, match=40.0, root=False), "divided by sqrt(d_head)"),
        (edited(W_Q=lambda W, t: W.T), "wrong shape"),
        (lambda triples, d_vocab: tuple(wire()(triples, d_vocab).values()), "a dictionary with W_Q"),
        (lambda triples, d_vocab: wire()(triples, 60), "wrong shape"),
    ],
)

# 5.7 and 5.8: right and wrong heads are measured, so that another training changes nothing here


def place(table, value):
    layer, head = (table == value).nonzero()[0].tolist()
    return {"layer": layer, "head": head}


def negative():
    (table, plain), effects = checks._copying(1), checks._effects()

    def answer(where, **change):
        at = where["layer"], where["head"]
        return {**where, "score": float(table[at]), "effect": float(effects["mean"][at]), **change}

    def other_seed(seed):
        table, _ = checks._copying(seed)
        return {**place(table, table.min()), "score": table.min(), "effect": -0.5}

    best = answer(place(table, table.min()))
    second = answer(place(table, table[table > table.min()].min()))
    at = best["layer"], best["head"]
    both = [(answer, (answer["layer"], answer["head"])) for answer in (best, second)]
    third = answer(place(table, table.flatten().sort().values[4]))
    return Answers(
        right=[
            best,
            second,
            {**best, "score": torch.tensor(best["score"] + 0.03), "effect": np.float32(best["effect"] * 1.25)},
            {**second, "layer": np.int64(second["layer"]), "head": torch.tensor(second["head"])},
        ],
        wrong=[
            (other_seed(0), "in the model of seed 0"),
            (other_seed(2), "in the model of seed 2"),
            (answer(place(table, table.max())), "the lowest is asked for"),
            (answer(place(table.abs(), table.abs().min())), "the lowest of all"),
            (answer(place(plain, plain.min()), score=float(plain.min())), "W_V W_O has negative eigenvalues"),
            (third, "the lowest of all"),
            ({**best, "score": -best["score"]}, "the sign"),
            ({**best, "score": 0.5}, "its full OV circuit"),
            ({**best, "effect": -best["effect"]}, "the sign"),
            ({**second, "effect": -second["effect"]}, "the sign"),
            ({**best, "effect": 2500 * best["effect"]}, "not their sum"),
            ({**best, "effect": second["effect"]}, "about the effect of"),
            ({**second, "effect": best["effect"]}, "about the effect of"),
            ({**best, "effect": float(effects["unscaled"][at])}, "over its scale"),
            ({**best, "effect": float(effects["unfolded"][at])}, "LayerNorm is not folded"),
            ({**best, "effect": best["score"]}, "the score again"),
            *(({**answer, "effect": float(effects["median"][at])}, "the median") for answer, at in both),
            *(({**answer, "effect": float(effects["0.0"][at])}, "more than 0.0 of the") for answer, at in both),
            *(({**answer, "effect": float(effects["0.5"][at])}, "more than 0.5 of the") for answer, at in both),
            ({**best, "score": None}, "does what you call return one?"),
            ({**best, "effect": 2.3 * best["score"]}, "the model of seed 1"),
            ({**best, "effect": math.nan}, "NaN"),
            ({**best, "layer": 4}, "counted from 1"),
            ({**best, "effect": ...}, "still `...`"),
            ({"layer": 3, "head": 0}, "a dictionary with layer, head, score, effect"),
            ("L3H0", "a dictionary with layer, head, score, effect"),
        ],
    )


def speaker():
    root = math.sqrt(768)
    read = {name: table.mean(dim=0) for name, table in checks._read_by_name_movers().items()}
    single = checks._read_by_name_movers()["q"]
    mean = read["q"]

    def answer(table, **change):
        where = place(table, table.max())
        return {**where, "times_baseline": float(table.max()) * root, **change}

    best = answer(mean)
    at = best["layer"], best["head"]
    second = answer(torch.where(mean == mean.max(), 0, mean))
    times, three = best["times_baseline"], single[:, at[0], at[1]] * root
    return Answers(
        right=[
            best,
            {**best, "times_baseline": torch.tensor(round(times, 2))},
            {**best, "times_baseline": round(times, 2) + 0.01},  # the baseline rounded to 0.036
            {**best, "times_baseline": np.float64(round(times, 1)), "layer": torch.tensor(best["layer"])},
        ],
        wrong=[
            (second, "is in place 2"),
            (answer(read["turned"]), "the axes are exchanged"),
            (answer(read["k"]), "not k_composition"),
            (answer(read["v"]), "not v_composition"),
            (place(mean, mean.min()) | {"times_baseline": 0.5}, "average over the three"),
            ({**best, "layer": best["head"], "head": best["layer"]}, "layer and head exchanged"),
            ({**best, "layer": 9, "head": 9}, "sender first"),
            ({**best, "times_baseline": times / root}, "the score itself"),
            ({**best, "times_baseline": 1 / times}, "the inverse"),
            ({**best, "times_baseline": times / root * 8}, "the baseline of d_head"),
            ({**best, "times_baseline": times * root}, "over the baseline"),
            ({**best, "times_baseline": 3 * times}, "the sum over the three"),
            ({**best, "times_baseline": times - 1}, "subtract nothing"),
            ({**best, "times_baseline": 100 * times}, "in percent"),
            ({**best, "times_baseline": 186}, "in percent"),
            ({**best, "times_baseline": mean.max() / mean.mean()}, "the mean of all heads"),
            ({**best, "times_baseline": three.square().mean().sqrt()}, "a root mean square"),
            ({**best, "times_baseline": three.log().mean().exp()}, "a geometric mean"),
            ({**best, "times_baseline": None}, "times_baseline is None"),
            ({**best, "times_baseline": float(single.max()) * root}, "median or maximum"),
            ({**best, "times_baseline": float(single[0][at]) * root}, "L9H9 alone reads"),
            ({**best, "times_baseline": second["times_baseline"]}, "the head that comes second"),
            ({**best, "times_baseline": "2"}, "a number"),
            ({"layer": 8, "head": 10}, "a dictionary with layer, head, times_baseline"),
            (8, "a dictionary with layer, head, times_baseline"),
        ],
    )


# 5.9 statements

TRUTH = {name: truth for name, (truth, _) in checks.STATEMENTS.items()}
STATED = Answers(
    right=[
        TRUTH,
        {name: str(truth) for name, truth in TRUTH.items()},
        {name: int(truth) for name, truth in TRUTH.items()},
        {name: np.bool_(truth) for name, truth in TRUTH.items()},
        {name: torch.tensor(truth) for name, truth in TRUTH.items()},
    ],
    wrong=[
        *(({**TRUTH, name: not truth}, checks.STATEMENTS[name][1][:30]) for name, truth in TRUTH.items()),
        (dict.fromkeys(TRUTH, "maybe"), "no such answer"),
        ({name: truth for name, truth in TRUTH.items() if name != "g"}, "judgement"),
        ([True] * 8, "judgement"),
    ],
)

BANK = {
    "two_matrices": TWO,
    "output_by_source": SOURCES,
    "copying_score": COPYING,
    "k_composition": COMPOSITION,
    "score_terms": TERMS,
    "skip_trigram_head": TRIGRAM,
    "negative": negative(),
    "speaker": speaker(),
    "statements": STATED,
}
