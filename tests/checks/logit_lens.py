"""Chapter 7's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from interp_edu import logit_lens
from interp_edu.checks import logit_lens as checks
from interp_edu.hooks import run_with_cache
from tests.checks.bank import Answers

# 7.1 lens_logits


def lens(normalise):
    """An answer from what stands for LayerNorm."""
    return lambda x, w, b, W_U, b_U: normalise(x, w, b) @ W_U + b_U


def with_variance(**kwargs):
    return lens(lambda x, w, b: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True, **kwargs) + 1e-5).sqrt() * w + b)


def stream_by_stream(x, w, b, W_U, b_U):
    out = np.zeros((*x.shape[:3], len(b_U)))
    x, w, b, W_U, b_U = (t.double().numpy() for t in (x, w, b, W_U, b_U))
    for at in itertools.product(*map(range, x.shape[:3])):
        out[at] = ((x[at] - x[at].mean()) / np.sqrt(x[at].var() + 1e-5) * w + b) @ W_U + b_U
    return out


def in_place(x, w, b, W_U, b_U):
    x -= x.mean(-1, keepdim=True)
    x /= (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return torch.einsum("lbpd,dv->lbpv", x.mul_(w).add_(b), W_U).add_(b_U)


def last_scale(x, w, b):
    return (x - x.mean(-1, True)) / (x[-1].var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * w + b


def plain(x, *_):
    return F.layer_norm(x, x.shape[-1:])


def norm(x, w, b):
    return F.layer_norm(x, x.shape[-1:], w, b)


LENS = Answers(
    right=[lens(norm), with_variance(correction=0), stream_by_stream, in_place, lambda *args: in_place(*args).tolist()],
    wrong=[
        (lens(lambda x, w, b: x), "there is no LayerNorm"),
        (lens(last_scale), "one scale for all layers"),
        (lens(plain), "w and b are missing"),
        (lens(lambda x, w, b: plain(x) * w), "b is missing"),
        (lens(lambda x, w, b: plain(x) + b), "w is missing"),
        (lens(lambda x, w, b: (plain(x) + b) * w), "first scale, then shift"),
        (lens(lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, eps=0)), "eps is missing"),
        (with_variance(correction=1), "d - 1"),
        (lambda x, w, b, W_U, b_U: norm(x, w, b) @ W_U, "b_U is missing"),
        (lambda *args: lens(norm)(*args).softmax(-1), "these are probabilities"),
        (lambda *args: lens(norm)(*args).log_softmax(-1), "these are log probabilities"),
        (lambda *args: lens(norm)(*args)[-1], "this is one layer"),
        (lambda *args: lens(norm)(*args)[:, :, -1], "this is one position"),
        (lambda x, w, b, W_U, b_U: norm(x, w, b), "the unembedding is missing"),
        (lens(lambda x, w, b: (plain(x.transpose(2, 3)).transpose(2, 3)) * w + b), "over positions"),
        (lens(lambda x, w, b: x / (x.square().mean(-1, True) + 1e-5).sqrt() * w + b), "this is RMSNorm"),
        (lens(lambda x, w, b: (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * w + b), "the whole tensor"),
        (lambda x, w, b, W_U, b_U: norm(x, w, b) @ W_U.T + b_U, "your code raised RuntimeError"),
        (lambda *args: None, "None"),
        (lambda *args: lens(norm)(*args)[-1:].expand(len(args[0]), -1, -1, -1) + 0, "layers, batch of"),
    ],
)

# 7.2 kl_to_final


def from_logs(make):
    """An answer from log probabilities of all layers and of the last."""
    return lambda logits: make(logits.log_softmax(-1), logits.log_softmax(-1)[-1])


def kl(p, final):
    return (final.exp() * (final - p)).sum(-1)


def of_probabilities(logits, small=0.0):
    p = logits.softmax(-1)
    return (p[-1] * ((p[-1] + small) / (p + small)).log()).sum(-1)


def in_numpy(logits):
    x = logits.double().numpy()
    top = x.max(-1, keepdims=True)
    log_p = x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))
    return np.einsum("bpv,lbpv->lbp", np.exp(log_p[-1]), log_p[-1] - log_p)


KL = Answers(
    right=[
        from_logs(kl),
        in_numpy,
        from_logs(lambda p, final: F.kl_div(p, final.exp().expand_as(p), reduction="none").sum(-1)),
        from_logs(lambda p, final: F.kl_div(p, final.expand_as(p), reduction="none", log_target=True).sum(-1)),
        from_logs(lambda p, final: torch.stack([kl(one.double(), final.double()) for one in p])),
    ],
    wrong=[
        (from_logs(lambda p, final: (p.exp() * (p - final)).sum(-1)), "this is KL(layer || final)"),
        (from_logs(lambda p, final: (p.exp() * (final - p)).sum(-1)), "the sign, and this is KL(layer"),
        (from_logs(lambda p, final: -kl(p, final)), "KL is never negative"),
        (from_logs(lambda p, final: (kl(p, final) + kl(final[None], p)) / 2), "this is symmetric, the mean"),
        (from_logs(lambda p, final: kl(p, final) / math.log(2)), "these are bits"),
        (from_logs(lambda p, final: (final.exp() * (final - p)).mean(-1)), "the mean over the vocabulary"),
        (from_logs(lambda p, final: -(final.exp() * p).sum(-1)), "this is the cross-entropy"),
        (from_logs(lambda p, final: kl(p, p[0])), "the first layer is taken for the final one"),
        (from_logs(lambda p, final: kl(p, final).sum()), "wrong shape"),
        (from_logs(lambda p, final: kl(p, final).mean((1, 2))), "one number for each layer"),
        (from_logs(lambda p, final: kl(p, final)[:-1]), "the last layer belongs to it too"),
        (from_logs(lambda p, final: final.exp() * (final - p)), "the sum runs over the vocabulary"),
        (from_logs(lambda p, final: (final.exp() * (final - p)).sum(-2)), "the sum runs over the vocabulary"),
        (from_logs(lambda p, final: (final - p).sum(-1)), "missing as weights"),
        (from_logs(lambda p, final: (final.exp() * (final - p).abs()).sum(-1)), "KL(final || layer)"),
        (of_probabilities, "use log_softmax"),
        (lambda logits: of_probabilities(logits, 1e-9), "KL(final || layer)"),
        (
            lambda logits: kl(logits.softmax(-1).clamp_min(1e-12).log(), logits.log_softmax(-1)[-1]),
            "KL(final || layer)",
        ),
        (lambda logits: kl(logits.log_softmax(2), logits.log_softmax(2)[-1]), "the softmax runs over positions"),
        (lambda logits: (logits[-1].softmax(-1) * (logits[-1] - logits)).sum(-1), "no log probabilities"),
        (lambda logits: "0", "the result"),
    ],
)

# 7.3 contributions


def slip(mistake):
    return lambda parts, w, b, W_U, b_U, *words: checks._contributions(parts, [w, b, W_U, b_U], *words, mistake)


def centring_the_direction(parts, w, b, W_U, b_U, right, wrong):
    """Right: the mean is taken out of what reads, not of what is read."""
    u = W_U.T[right] - W_U.T[wrong]
    reads = w * u - (w * u).mean(-1, keepdim=True)
    reads = reads / parts.sum(0).double().var(-1, unbiased=False, keepdim=True).add(1e-5).sqrt()
    return torch.cat([(parts * reads).sum(-1), (u * b).sum(-1)[None], (b_U[right] - b_U[wrong])[None]])


def row_by_row(parts, w, b, W_U, b_U, right, wrong):
    out = np.zeros((len(parts) + 2, len(right)))
    for i, (r, s) in enumerate(zip(right.tolist(), wrong.tolist(), strict=True)):
        stream = parts[:, i].double().numpy()
        u = (W_U[:, r] - W_U[:, s]).double().numpy()
        scale = np.sqrt(stream.sum(0).var() + 1e-5)
        out[:-2, i] = [((x - x.mean()) * w.numpy() * u).sum() / scale for x in stream]
        out[-2:, i] = b.numpy() @ u, b_U[r] - b_U[s]
    return out.tolist()


def logits_by_part(parts, w, b, W_U, b_U, right, wrong):
    """Right: all logits of each part, and then the difference of two."""
    scale = (parts.sum(0).var(-1, correction=0) + 1e-5).sqrt()[:, None]
    rows = (parts - parts.mean(-1, keepdim=True)) / scale * w @ W_U
    rows = torch.cat([rows, (b @ W_U).expand(1, *rows.shape[1:]), b_U.expand(1, *rows.shape[1:])])
    at = torch.arange(len(right))
    return rows[:, at, right] - rows[:, at, wrong]


def norm_of_parts(parts, w, b, W_U, b_U, right, wrong):
    u = W_U[:, right] - W_U[:, wrong]
    each = (F.layer_norm(parts, parts.shape[-1:], w, b) * u.T).sum(-1)
    return torch.cat([each, torch.stack([b @ u, b_U[right] - b_U[wrong]])])


def every_with_every(parts, w, b, W_U, b_U, right, wrong):
    out = (parts - parts.mean(-1, True)) * w @ (W_U[:, right] - W_U[:, wrong])
    return torch.cat([out, out[:2]])


def given_to_the_last(*args):
    out = slip("")(*args)
    wrong = slip("not centred")(*args)
    wrong[-3] += out.sum(0) - wrong.sum(0)
    return wrong


WHO = Answers(
    right=[slip(""), centring_the_direction, row_by_row, logits_by_part, lambda *args: slip("")(*args).float().numpy()],
    wrong=[
        *((slip(name), text[:45]) for name, text in checks.CONTRIBUTION_MISTAKES.items()),
        (norm_of_parts, "each part has a LayerNorm of its own"),
        (lambda *args: slip("")(*args)[:-2], "a row is missing"),
        (lambda *args: slip("")(*args)[:-1], "a row is missing"),
        (lambda *args: slip("")(*args).T, "the order of the axes"),
        (lambda *args: slip("")(*args).sum(0), "wrong shape"),
        (every_with_every, "wrong shape"),
        (given_to_the_last, "it adds up"),
        (lambda *args: slip("")(*args).abs(), "the sum over rows is the logit difference"),
        (lambda *args: None, "None"),
    ],
)

# 7.4 by_source


def einsum(rule):
    return lambda A, v, W_O, direction: torch.einsum(rule, A, v, W_O, direction)


def source_by_source(A, v, W_O, direction):
    out = np.zeros((A.shape[1], A.shape[0], A.shape[2]), dtype=np.float32)
    for h, b, k in np.ndindex(*out.shape):
        out[h, b, k] = A[b, h, k] * ((v[b, k, h] @ W_O[h]) @ direction[b])
    return out


def reading_first(A, v, W_O, direction):
    reads = torch.einsum("hed,bd->bhe", W_O.double(), direction.double())
    return (v * reads[:, None]).sum(-1).permute(2, 0, 1) * A.transpose(0, 1)


def good(A, v, W_O, direction):
    return torch.einsum("bhk,bkhe,hed,bd->hbk", A, v, W_O, direction)


FROM = Answers(
    right=[good, source_by_source, reading_first, lambda *args: good(*(t.double() for t in args)).tolist()],
    wrong=[
        *((einsum(rule), text[:30]) for rule, text in checks.SOURCE_MISTAKES.items()),
        (einsum("bhk,bkhe,hed,bd->hb"), "summed over keys"),
        (einsum("bhk,bkhe,hed,bd->bh"), "summed over keys"),
        (einsum("bhk,bkhe,hed,bd->bhk"), "the order of the axes"),
        (einsum("bhk,bkhe,hed,bd->hkb"), "the order of the axes"),
        (einsum("bhk,bkhe,hed,bd->bk"), "wrong shape"),
        (lambda A, v, W_O, u: torch.einsum("bhk,bkhe,hed->hbkd", A, v, W_O), "these are vectors"),
        (lambda A, v, W_O, u: good(A, v, W_O.flip(0), u), "W_O"),
        (lambda A, v, W_O, u: good(A, v, W_O, u / u.norm(dim=-1, keepdim=True)), "a unit vector"),
        (lambda A, v, W_O, u: good(A.softmax(-1), v, W_O, u), "which has had one"),
        (lambda A, v, W_O, u: good(A, v, W_O, u).abs(), "absolute values"),
        (lambda *args: None, "None"),
        (lambda A, v, W_O, u: good(A, v.transpose(1, 2), W_O, u), "your code raised"),
        (lambda A, v, W_O, u: good(A, v, W_O, u[:1].expand_as(u)), "a direction of its own"),
        (lambda A, v, W_O, u: good(A, v, W_O, u) / A.shape[2], "a sum, not a mean"),
    ],
)

# 7.5 next_word


def predictions(model, tokens, **kwargs):
    _, cache = run_with_cache(model, tokens)
    return logit_lens.logit_lens(model, logit_lens.streams(cache), **kwargs).log_probs.exp()


def chosen(p, words):
    return p.gather(-1, words.expand(len(p), -1, -1)[..., None])[..., 0]


def shifted(k, finish=lambda p: p.mean((1, 2)), **kwargs):
    """The probability of the word k further on, from all positions that have one."""

    def answer(model, tokens):
        p, n = predictions(model, tokens, **kwargs), tokens.shape[1]
        return finish(chosen(p[:, :, max(-k, 0) : n - max(k, 0)], tokens[:, max(k, 0) : n + min(k, 0)]))

    return answer


def broken_next_word(model, tokens):
    _, cache = run_with_cache(model, tokens)
    return logit_lens.logit_lens(model, logit_lens.streams(cache)).probability(tokens)[:, :, 1:].mean(dim=(1, 2))


def rolled(model, tokens):
    return chosen(predictions(model, tokens), tokens.roll(-1, 1)).mean((1, 2))


def rolled_and_cut(model, tokens):
    return chosen(predictions(model, tokens), tokens.roll(-1, 1))[:, :, :-1].mean((1, 2))


def by_hand(model, tokens):
    """Right: layer by layer, from the model itself."""
    found = []
    for i in range(model.cfg.n_layers + 1):
        x = model(tokens, stop_at_layer=i)
        x = F.layer_norm(x, x.shape[-1:], model.ln_final.w, model.ln_final.b)
        p = (x @ model.unembed.W_U + model.unembed.b_U).softmax(-1)
        rows = [p[b, at, t] for b, row in enumerate(tokens.tolist()) for at, t in enumerate(row[1:])]
        found.append(sum(rows).item() / len(rows))
    return found


def damaging(model, tokens):
    model.ln_final.w.data.mul_(1.0001)
    return rolled_and_cut(model, tokens)


def clearing_hooks(model, tokens):
    out = rolled_and_cut(model, tokens)
    model.attached.clear()
    return out


def leaving_a_hook(model, tokens):
    out = rolled_and_cut(model, tokens)
    model.attached.setdefault("hook_embed", []).append(lambda x, hook: None)
    return out


NEXT = Answers(
    right=[shifted(1), rolled_and_cut, by_hand, shifted(1, lambda p: p.double().flatten(1).mean(1).numpy())],
    wrong=[
        (broken_next_word, "this is still the probability"),
        (shifted(0), "each position's own word"),
        (shifted(-1), "shifted the wrong way"),
        (lambda m, t: shifted(2 if t.shape[1] > 2 else 1)(m, t), "shifted by two"),
        (rolled, "the last position counts too"),
        (shifted(1, lambda p: p.log().mean((1, 2))), "the mean of logarithms"),
        (shifted(1, lambda p: -p.log().mean((1, 2))), "this is a loss"),
        (shifted(1, lambda p: p.log().mean((1, 2)).exp()), "exp of the mean logarithm"),
        (shifted(1, lambda p: p.sum((1, 2))), "this is a sum"),
        (shifted(1, lambda p: p.sum((1, 2)) / p[0].numel() * (p.shape[2] / (p.shape[2] + 1))), "all positions"),
        (shifted(1, lambda p: p.mean(1)), "wrong shape"),
        (shifted(1, lambda p: p.mean(2)), "wrong shape"),
        (shifted(1, lambda p: p.mean()), "wrong shape"),
        (shifted(1, lambda p: p[1:].mean((1, 2))), "and one for that after the last"),
        (shifted(1, norm="none"), "LayerNorm is missing"),
        (shifted(1, norm="last"), "every layer"),
        (shifted(1, lambda p: p[:, :1].mean((1, 2))), "the last entry is the model's own"),
        (damaging, "leave the weights alone"),
        (clearing_hooks, "hooks changed"),
        (leaving_a_hook, "hooks changed"),
    ],
)

# 7.6 translator


def affine(A, b):
    return lambda R, c: {"A": A(R, torch.eye(len(c))), "b": b(R, c)}


def back(R, one):
    return R.T - one


def away(R, c):
    return -c @ R.T


def solved(R, c):
    """Right: from what comes of c and of each unit vector, by least squares."""
    f = torch.cat([torch.zeros(1, len(c)), torch.eye(len(c))]).double()
    h = f @ R.double() + c.double()
    X = torch.linalg.lstsq(torch.cat([h, torch.ones(len(h), 1).double()], 1), f - h).solution
    return {"A": X[:-1].numpy(), "b": X[-1].tolist()}


TRANSLATOR = Answers(
    right=[
        affine(back, away),
        affine(lambda R, one: torch.linalg.inv(R) - one, lambda R, c: -(R @ c)),
        solved,
        affine(lambda R, one: (R.T - one).tolist(), lambda R, c: (-R.numpy() @ c.numpy()).tolist()),
    ],
    wrong=[
        (affine(lambda R, one: R.T, away), "the identity has to be taken away from R.T"),
        (affine(lambda R, one: R - one, away), "A leads from f to h, not back"),
        (affine(lambda R, one: R, away), "A leads from f to h"),
        (affine(lambda R, one: one - R.T, away), "the sign of A"),
        (affine(lambda R, one: R.T + one, away), "solve h = f R + c"),
        (affine(back, lambda R, c: -c), "the constant is turned with it"),
        (affine(back, lambda R, c: c @ R.T), "the sign of b"),
        (affine(back, lambda R, c: -c @ R), "b is -c R"),
        (affine(back, lambda R, c: c @ R), "solve h = f R + c"),
        (affine(back, lambda R, c: c), "turned back by R.T"),
        (affine(back, lambda R, c: 0 * c), "b is missing"),
        (affine(lambda R, one: -2 * one, away), "solve h = f R + c"),
        (affine(lambda R, one: back(R, one)[0], away), "wrong shape"),
        (lambda R, c: (R.T - torch.eye(len(c)), -c @ R.T), "a dictionary with A, b"),
        (lambda R, c: None, "a dictionary with A, b"),
    ],
)

# 7.7 hidden


def three(together, from_io, from_s1):
    return {"together": together, "from_io": from_io, "from_s1": from_s1}


def measured(values):
    return three(*values.tolist())


HIDDEN = Answers(
    right=[
        three(-0.17, 9.86, -9.61),
        three(0.08, 9.59, -9.36),
        three(torch.tensor(-0.41), np.float32(10.11), -9.82),
        three(0, 10, -10),
    ],
    wrong=[
        *((measured(value), text[:40]) for text, value in checks._hidden_slips().items()),
        (three(0.0, 10.72, -10.61), "the model of seed 0"),
        (three(-0.13, 8.3, -8.04), "the model of seed 1"),
        (three(6.05, 0.0, 0.0), "this is layer 2"),
        (three(-0.2, -9.8, 9.6), "exchanged"),
        (three(5.0, 3.0, 2.0), "summed over heads"),
        ({"together": -0.2, "from_io": 9.8}, "a dictionary with"),
        (three("zero", 9.8, -9.7), "should be a tensor"),
        (three(None, 9.8, -9.7), "None"),
        (three(math.nan, 9.8, -9.7), "NaN"),
        (three([0.1] * 6, 9.8, -9.7), "wrong shape"),
        ([0.0, 9.8, -9.7], "a dictionary with"),
    ],
)

# 7.8 effect


def that(layer=3, head=0, direct=2.79, total=4.72):
    return {"layer": layer, "head": head, "direct": direct, "total": total}


EFFECT = Answers(
    right=[
        that(),
        that(direct=2.53, total=4.33),
        that(direct=3.0, total=torch.tensor(5.13)),
        that(layer=torch.tensor(3), head=np.int64(0), total=4.97),  # zero instead of the mean
        that(total=5.31),
    ],
    wrong=[
        (that(0, 3), "layer and head exchanged"),
        (that(2, 2, 2.8, 3.2), "seed 0"),
        (that(2, 3, 6.07, 7.2), "seed 2"),
        (that(3, 1), "contributes most, directly"),
        (that(2, 5), "contributes most, directly"),
        (that(4, 0), "layers go from 0 to 3"),
        (that(direct=4.72, total=2.79), "direct and total are exchanged"),
        (that(direct=4.72), "this is the total effect"),
        (that(direct=-2.75), "the sign"),
        (that(direct=4.6), "all heads of the layer"),
        (that(direct=1.0), "found.of('L3H0')"),
        (that(direct=float(checks._taken(1, "unscaled").sum(3).mean(2)[3, 0])), "division is missing"),
        (that(direct=float(checks._taken(1, "unfolded").sum(3).mean(2)[3, 0])), "LayerNorm's w is missing"),
        (that(direct=float(checks._taken(1, "one word").sum(3).mean(2)[3, 0])), "next to nothing"),
        (that(direct=float(checks._taken(1, "last").sum(3).mean(2)[3, 0])), "next to nothing"),
        (that(total=-4.65), "the sign"),
        (that(total=2.79), "the direct contribution again"),
        (that(total=7.95), "the fall is asked for, for one head"),
        (that(total=3.35), "what is left without the head"),
        (that(total=0.0), "replace z at END"),
        (that(total=100.0), "replace z at END"),
        ({"layer": 3, "head": 0}, "a dictionary with"),
        (that(layer="three"), "whole numbers"),
        (that(direct=None), "None"),
    ],
)

# 7.9 statements

TRUTH = {"a": True, "b": False, "c": False, "d": True, "e": False, "f": False, "g": True, "h": False}

STATEMENTS = Answers(
    right=[
        TRUTH,
        {name: str(value) for name, value in TRUTH.items()},
        {name: np.bool_(value) for name, value in TRUTH.items()},
        {name: torch.tensor(value) for name, value in TRUTH.items()},
        {name: int(value) for name, value in TRUTH.items()},
    ],
    wrong=[
        *((TRUTH | {name: not value}, f"statement {name}") for name, value in TRUTH.items()),
        ({name: True for name in TRUTH}, "statement b"),
        ({name: value for name, value in TRUTH.items() if name != "h"}, "one judgement for each"),
        (TRUTH | {"c": "maybe"}, "no such answer"),
        (list(TRUTH.values()), "a dictionary of judgements"),
    ],
)

BANK = {
    "lens_logits": LENS,
    "kl_to_final": KL,
    "contributions": WHO,
    "by_source": FROM,
    "next_word": NEXT,
    "translator": TRANSLATOR,
    "hidden": HIDDEN,
    "effect": EFFECT,
    "statements": STATEMENTS,
}
