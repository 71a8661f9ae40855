"""Chapter 4's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from interp_edu import transformer as tf
from interp_edu.checks import transformer as checks
from interp_edu.hooks import hooked, run_with_cache
from tests.checks.bank import Answers

# 4.1 causal_attention


def by_matmul(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5 + torch.full((q.shape[2],) * 2, -math.inf).triu(1)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def by_loops(q, k, v):
    z = np.zeros(v.shape)
    for b, p, h in itertools.product(*map(range, q.shape[:3])):
        s = (k[b, : p + 1, h].double() @ q[b, p, h].double() / math.sqrt(q.shape[3])).numpy()
        w = np.exp(s - s.max())
        z[b, p, h] = (w / w.sum()) @ v[b, : p + 1, h].double().numpy()
    return z


def attend(mistake):
    return lambda q, k, v: checks._attend(q, k, v, mistake)


def masked(edit):
    """Attention with a mask that the learner made: `edit` gets scores [batch, head, query, key]."""

    def attention(q, k, v):
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[3])
        return torch.einsum("bhqk,bkhd->bqhd", edit(scores, torch.ones(scores.shape[-2:])), v)

    return attention


def overflowing(q, k, v):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[3])
    w = scores.exp().tril()
    return torch.einsum("bhqk,bkhd->bqhd", w / w.sum(-1, keepdim=True), v)


def heads_mixed(q, k, v):
    w = (
        torch.einsum("bqhd,bkhd->bqk", q, k)
        .div(math.sqrt(q.shape[3]))
        .masked_fill(torch.ones(q.shape[1], q.shape[1]).triu(1).bool(), -math.inf)
    )
    return torch.einsum("bqk,bkhd->bqhd", w.softmax(-1), v)


ATTENTION = Answers(
    right=[by_matmul, by_loops, tf.attention, lambda q, k, v: attend("")(q, k, v).float()],
    wrong=[
        (attend("no mask"), "the mask is missing"),
        (attend("no scale"), "square root of d_head"),
        (attend("scale d"), "not by its square root"),
        (attend("scale all"), "one head's size"),
        (attend("turned"), "upside down"),
        (attend("not itself"), "leave the diagonal open"),
        (attend("zero"), "use minus infinity"),
        (attend("late"), "no longer sum to one"),
        (attend("queries"), "for each query the weights of the keys"),
        (overflowing, "exp overflows"),
        (masked(lambda s, one: s.masked_fill(one.triu().bool(), -math.inf).softmax(-1)), "triu(1)"),
        (masked(lambda s, one: s.masked_fill(one.tril().bool(), -math.inf).softmax(-1)), "upside down"),
        (masked(lambda s, one: (s + one.triu(1) * -math.inf).softmax(-1)), "0 times minus infinity"),
        (masked(lambda s, one: s.tril().masked_fill(s.tril() == 0, -math.inf).softmax(-1)), "mask by position"),
        (masked(lambda s, one: (w := s.softmax(-1).tril()) / w.sum(-1, keepdim=True)), "very large scores"),
        (lambda q, k, v: attend("")(k, q, v), "queries and keys"),
        (heads_mixed, "a batch with several heads"),
        (lambda q, k, v: by_matmul(q, k, v).transpose(1, 2), "wrong shape"),
        (lambda q, k, v: v, "worked by hand"),
    ],
)

# 4.2 layer_norm


def norm(mistake):
    return lambda x, w, b, eps: checks._norm(x, w, b, eps, mistake)


LAYER_NORM = Answers(
    right=[
        lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b, eps),
        lambda x, w, b, eps: (
            (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + eps) * w + b
        ),
        lambda x, w, b, eps: (
            (x.double() - x.double().mean(-1, True)).mul_(w)
            / (x.double().var(-1, correction=0, keepdim=True) + eps).sqrt()
            + b
        ),
    ],
    wrong=[
        (norm("no mean"), "RMSNorm"),
        (norm("unbiased"), "divided by d - 1"),
        (norm("positions"), "normalising over the wrong axis"),
        (norm("batch"), "normalising over the wrong axis"),
        (norm("whole"), "each position has its own"),
        (norm("variance"), "take its square root"),
        (norm("never centred"), "not from x itself"),
        (norm("std plus eps"), "x.std divides by d - 1"),
        (norm("eps outside"), "under the root"),
        (norm("no eps"), "eps is missing"),
        (norm("plain"), "w and b are missing"),
        (norm("no w"), "w is missing"),
        (norm("no b"), "b is missing"),
        (norm("b first"), "first scale, then shift"),
        (lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b), "worked by hand"),
        (lambda x, w, b, eps: None, "no return statement"),
    ],
)

# 4.3 stream_parts


def parts(cache, n, outs=("attn_out", "mlp_out"), start=("hook_embed", "hook_pos_embed")):
    names = [*start, *(f"blocks.{i}.hook_{o}" for i in range(n) for o in outs)]
    return torch.stack([cache[name] for name in names if name in cache])


def differences(cache, n):
    """Right in another way: what each component wrote is how the stream changed."""
    states = [cache["hook_embed"] * 0, cache["hook_embed"]]
    for i in range(n):
        states.append(cache["resid_pre", i])
        if f"blocks.{i}.hook_resid_mid" in cache:
            states.append(cache["resid_mid", i])
    return torch.stack([*states, cache["resid_post", n - 1]]).diff(dim=0)


PARTS = Answers(
    right=[
        parts,
        lambda cache, n: list(parts(cache, n)),
        lambda cache, n: [p.numpy() for p in parts(cache, n)],
        differences,
    ],
    wrong=[
        (lambda cache, n: parts(cache, n, ("attn_out", "mlp_out"), ("hook_embed",)), "token and position embeddings"),
        (lambda cache, n: parts(cache, n, ("attn_out",)), "the MLPs write too"),
        (lambda cache, n: parts(cache, n, ("resid_mid", "resid_post")), "running sums"),
        (lambda cache, n: parts(cache, n).flip(0), "the order"),
        (lambda cache, n: parts(cache, n).cumsum(0), "left out, or counted twice"),
        (
            lambda cache, n: torch.stack(
                [cache[f"blocks.{i}.hook_{o}"] for i in range(n) for o in ("attn_out", "mlp_out")]
            ),
            "parts",
        ),
        (
            lambda cache, n: torch.stack(
                [
                    cache["hook_embed"],
                    cache["hook_pos_embed"],
                    *(cache[f"blocks.{i}.hook_{o}"] for i in range(n) for o in ("attn_out", "mlp_out")),
                ]
            ),
            "KeyError",
        ),
        (lambda cache, n: parts(cache, n).sum(0), "wrong shape"),
        (lambda cache, n: parts(cache, n).movedim(0, -1), "new first axis"),
        (lambda cache, n: parts(cache, n - 1), "parts"),
    ],
)

# 4.4 ablate_head


def with_hook(edit, name="blocks.{}.attn.hook_z", shift=0):
    def ablate(model, tokens, layer, head):
        with hooked(model, [(name.format((layer + shift) % 3), lambda x, hook: edit(x, head))]):
            return model(tokens)

    return ablate


def zero(x, *index):
    x = x.clone()
    x[index] = 0
    return x


ALL = slice(None)


def editing_weights(model, tokens, layer, head):
    model.blocks[layer].attn.W_O.data[head] = 0
    return model(tokens)


def editing_and_restoring(model, tokens, layer, head):
    W = model.blocks[layer].attn.W_O
    kept = W.data[head].clone()
    W.data[head] = 0
    logits = model(tokens)
    W.data[head] = kept
    return logits


def leaving_a_hook(model, tokens, layer, head):
    model.attached.setdefault(f"blocks.{layer}.attn.hook_z", []).append(lambda z, hook: zero(z, ALL, ALL, head))
    return model(tokens)


def from_the_cache(model, tokens, layer, head):
    """Changes what was recorded, and runs nothing again."""
    logits, cache = run_with_cache(model, tokens)
    cache["z", layer][:, :, head] = 0
    return logits


def by_subtracting(model, tokens, layer, head):
    """Right: take the head's own summand out of what attention wrote."""
    _, cache = run_with_cache(model, tokens, f"blocks.{layer}.attn.hook_result")
    own = cache["result", layer][:, :, head]
    with hooked(model, [(f"blocks.{layer}.hook_attn_out", lambda x, hook: x - own)]):
        return model(tokens)


def deleting_all_hooks(model, tokens, layer, head):
    name = f"blocks.{layer}.attn.hook_z"
    model.attached[name] = [*model.attached.get(name, []), lambda z, hook: zero(z, ALL, ALL, head)]
    logits = model(tokens)
    model.attached.clear()
    return logits


def outside_the_block(model, tokens, layer, head):
    with hooked(model, [(f"blocks.{layer}.attn.hook_z", lambda z, hook: zero(z, ALL, ALL, head))]):
        pass
    return model(tokens)


ABLATE = Answers(
    right=[
        with_hook(lambda z, head: zero(z, ALL, ALL, head)),
        with_hook(lambda p, head: zero(p, ALL, head), "blocks.{}.attn.hook_pattern"),
        with_hook(lambda v, head: zero(v, ALL, ALL, head), "blocks.{}.attn.hook_v"),
        by_subtracting,
        editing_and_restoring,
    ],
    wrong=[
        (with_hook(lambda z, head: zero(z, ALL, head)), "a position was zeroed"),
        (with_hook(lambda z, head: z * 0), "all heads of the layer are gone"),
        (with_hook(lambda x, head: x * 0, "blocks.{}.hook_attn_out"), "whole output is gone, with its bias"),
        (with_hook(lambda z, head: zero(z, ALL, ALL, head), shift=1), "was ablated, not layer"),
        (with_hook(lambda z, head: z - zero(z, ALL, ALL, head)), "all heads but this one"),
        (lambda model, tokens, layer, head: model(tokens), "nothing was changed"),
        (from_the_cache, "nothing was changed"),
        (with_hook(lambda z, head: zero(z, ALL, ALL, ALL, head)), "ablated"),
        (with_hook(lambda z, head: zero(z, ALL, -1, head)), "ablated"),
        (deleting_all_hooks, "attached before is still there"),
        (outside_the_block, "ablated"),
        (lambda *a: (with_hook(lambda z, head: zero(z, ALL, ALL, head))(*a), {}), "and nothing else"),
        (with_hook(lambda q, head: zero(q, ALL, ALL, head), "blocks.{}.attn.hook_q"), "set hook_z to zero"),
        (editing_weights, "weights were edited"),
        (leaving_a_hook, "no hook stays attached"),
        (with_hook(lambda z, head: zero(z, ALL, ALL, head + 7)), "IndexError"),
        (with_hook(lambda z, head: z, "blocks.{}.hook_z"), "no hook point"),
        (with_hook(lambda z, head: zero(z, ALL, ALL, head).sum(2)), "must be"),
    ],
)

# 4.5 forward


def ours(p, tokens, n_layers):
    cfg = tf.Config(n_layers=2, d_model=20, n_ctx=12, d_head=5, n_heads=3, d_vocab=31, d_mlp=24)
    model = tf.Transformer(cfg)
    model.load_state_dict(p)
    stream = model(tokens, stop_at_layer=n_layers)
    return model(stream, start_at_layer=2) if n_layers < 2 else model(tokens)


def full(mistake):
    return lambda p, tokens, n_layers: checks._forward(p, tokens, n_layers, mistake)


def positions_forgotten(p, tokens, n_layers):
    return full("")({**p, "pos_embed.W_pos": p["pos_embed.W_pos"] * 0}, tokens, n_layers)


def damaging(p, tokens, n_layers):
    p["pos_embed.W_pos"].zero_()
    return full("")(p, tokens, n_layers)


def popping(p, tokens, n_layers):
    """Right: what it takes out of its dictionary it puts back into another."""
    return full("")({"embed.W_E": p.pop("embed.W_E"), **p}, tokens, n_layers)


FORWARD = Answers(
    right=[popping, full(""), ours, lambda p, t, n: (full("")(p, t, n).float(), {"x": 0})],
    wrong=[
        (full("stale"), "still the function with the bug"),
        (full("exact gelu"), "tanh approximation"),
        (damaging, "the weights are as they were"),
        (full("parallel"), "the stream from before attention"),
        (full("no ln1"), "attention reads the stream without LayerNorm"),
        (full("no ln2"), "the MLP reads the stream without LayerNorm"),
        (full("no final"), "before the unembedding"),
        (full("no mask"), "the mask is missing"),
        (full("no scale"), "square root of d_head"),
        (positions_forgotten, "where is the first that differs"),
        (lambda p, t, n: full("")(p, t, n - 1), "where is the first that differs"),
        (lambda p, t, n: full("")(p, t, n).softmax(-1), "where is the first that differs"),
        (lambda p, t, n: full("")(p, t, n)[:, -1], "wrong shape"),
    ],
)

# 4.6 previous_token_head


def head(shift=1, sharp=20.0, root=True, copy=True, target="previous", gain=1.0, key="position", room=True):
    def make(n, V):
        d, e = 2 * V + n, max(n, V) if room else n
        at = {"token": slice(0, V), "position": slice(V, V + n), "previous": slice(V + n, d)}
        W_Q, W_K, W_V, W_O = torch.zeros(d, e), torch.zeros(d, e), torch.zeros(d, e), torch.zeros(e, d)
        size = V if key == "token" else n
        W_K[at[key], :size] = torch.eye(size)
        W_Q[at[key], :size] = sharp * (e**0.5 if root else 1) * torch.eye(size).roll(shift, dims=0)
        W_V[at["token"] if copy else slice(V, 2 * V), :V] = torch.eye(V)
        W_O[:V, at[target]] = gain * torch.eye(V)
        return {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O}

    return make


def by_distance(n, V):
    """Right with two dimensions: the score falls with the square of the distance from p - 1."""
    d, p = 2 * V + n, torch.arange(float(n))
    W_Q, W_K = torch.zeros(d, 2), torch.zeros(d, 2)
    W_Q[V : V + n] = 30 * torch.stack([2 * (p - 1), torch.ones(n)], dim=1)
    W_K[V : V + n] = torch.stack([p, -p * p], dim=1)
    return {"W_Q": W_Q, "W_K": W_K, "W_V": torch.eye(d)[:, :V], "W_O": torch.eye(d)[V + n :]}


def without(name):
    return lambda n, V: {k: v for k, v in head()(n, V).items() if k != name}


def previous_without_first(n, V):
    """W_K and W_Q exchanged: the shift points into the future, where the mask lets nobody look."""
    W = head()(n, V)
    return {**W, "W_Q": W["W_K"] * 100, "W_K": W["W_Q"] / 100}


HEAD = Answers(
    right=[head(), by_distance, lambda n, V: {k: v.tolist() for k, v in head(sharp=50.0)(n, V).items()}],
    wrong=[
        (head(shift=0), "each position attends to itself"),
        (head(shift=-1), "is the shift the other way round"),
        (previous_without_first, "is the shift the other way round"),
        (head(sharp=1.0), "not sharply"),
        (head(sharp=10.0, root=False), "not sharply"),
        (head(sharp=100.0, root=False), "not sharply"),
        (head(sharp=0.0), "attends to everything alike"),
        (head(room=False), "your code raised RuntimeError"),
        (head(shift=2), "attends to the one before"),
        (head(key="token"), "attends to the one before"),
        (
            lambda n, V: {**head()(n, V), "W_V": head()(n, V)["W_V"].index_fill(0, torch.tensor(0), 0)},
            "the word before",
        ),
        (head(target="token"), "over the token's own dimensions"),
        (head(copy=False), "W_V reads the token"),
        (head(gain=2.0), "with weight one"),
        (without("W_O"), "a dictionary with W_Q"),
        (lambda n, V: {k: v.T for k, v in head()(n, V).items()}, "wrong shape"),
        (lambda n, V: tuple(head()(n, V).values()), "a dictionary with W_Q"),
    ],
)

# 4.7 fact_mlp


def store(bias=-1.0, weight=1.0, gain=1.0, key="both", per="fact"):
    def make(facts, first, last, answers):
        d = first + last + answers
        W_in, W_out = torch.zeros(d, len(facts)), torch.zeros(len(facts), d)
        for n, (i, j, a) in enumerate(facts):
            if key in ("both", "first"):
                W_in[i, n] = weight
            if key in ("both", "last"):
                W_in[first + j, n] = weight
            W_out[n, (first + last if per == "fact" else 0) + a if per == "fact" else i] = gain
        return {"W_in": W_in, "b_in": torch.full((len(facts),), bias), "W_out": W_out}

    return make


def every_pair(facts, first, last, answers):
    """Right with a neuron for every pair, stored or not."""
    d, table = first + last + answers, {(i, j): a for i, j, a in facts}
    W_in, W_out = np.zeros((d, first * last)), np.zeros((first * last, d))
    for n, (i, j) in enumerate(itertools.product(range(first), range(last))):
        W_in[i, n] = W_in[first + j, n] = 4
        if (i, j) in table:
            W_out[n, first + last + table[i, j]] = 0.5
    return {"W_in": W_in, "b_in": np.full(first * last, -6.0), "W_out": W_out}


def neuron_per_answer(facts, first, last, answers):
    """A neuron for each answer, which adds up the evidence: it fires for mixtures of the pairs it serves."""
    d = first + last + answers
    W_in, W_out = torch.zeros(d, answers), torch.zeros(answers, d)
    for i, j, a in facts:
        W_in[i, a] = W_in[first + j, a] = 1
    W_out[:, first + last :] = torch.eye(answers)
    return {"W_in": W_in, "b_in": -torch.ones(answers), "W_out": W_out}


def wrong_offset(name):
    def make(facts, first, last, answers):
        W = store()(facts, first, last, answers)
        W[name] = W[name].roll(-first - last, dims=0 if name == "W_in" else 1)
        return W

    return make


STORE = Answers(
    right=[
        store(),
        lambda *a: {k: v.tolist() for k, v in store()(*a).items()},
        store(bias=-3.0, weight=2.0),
        every_pair,
    ],
    wrong=[
        (store(bias=0.0), "the bias has to leave exactly 1"),
        (store(bias=-2.0), "is the bias too negative"),
        (store(bias=1.0), "the bias has to leave exactly 1"),
        (store(bias=0.0, weight=0.5), "the bias"),
        (store(bias=0.0, key="first"), "writes its answer"),
        (store(bias=0.0, key="last"), "writes its answer"),
        (store(gain=2.0), "with weight one"),
        (wrong_offset("W_out"), "answers begin at"),
        (store(per="first"), "writes its answer"),
        (neuron_per_answer, "nothing"),
        (lambda *a: {k: v for k, v in store()(*a).items() if k != "b_in"}, "a dictionary with W_in, b_in, W_out"),
        (lambda *a: {**store()(*a), "W_in": store()(*a)["W_in"].T}, "wrong shape"),
    ],
)

# 4.8 fold


FOLD = Answers(
    right=[
        lambda w, b, W, c: (torch.diag(w) @ W, c + (b[:, None] * W).sum(0)),
        lambda w, b, W, c: [W.mul(w[:, None]).double(), torch.addmv(c, W.T, b)],
        lambda w, b, W, c: (w[:, None] * W - (w[:, None] * W).mean(0), c + b @ W),  # centred as well: the same function
    ],
    wrong=[
        (lambda w, b, W, c: (w[:, None] * W, c), "b is lost"),
        (lambda w, b, W, c: (w[:, None] * W, c + b @ (w[:, None] * W)), "adds b after scaling"),
        (lambda w, b, W, c: (W, c + b @ W), "w is lost"),
        (lambda w, b, W, c: (w[:, None] * W, b @ W), "the old c is lost"),
        (lambda w, b, W, c: (W / w[:, None], c + b @ W), "gives what LayerNorm with weights"),
        (lambda w, b, W, c: (w[:, None] * W, c - b @ W), "gives what LayerNorm with weights"),
        (lambda w, b, W, c: w[:, None] * W, "two tensors"),
        (lambda w, b, W, c: (W * w, c + b @ W), "RuntimeError"),
        (lambda w, b, W, c: (w[:, None] * W, b @ W + W), "wrong shape"),
    ],
)

# 4.9 and 4.10: right and wrong heads are measured, so that another training changes nothing here


def place(table, value):
    """The (layer, head) where a table has this value."""
    layer, head = (table == value).nonzero()[0].tolist()
    return {"layer": layer, "head": head}


def looks_back():
    table = checks._attention_to_previous()
    best, runner_up = place(table, table.max()), place(table, table[table < 0.9 * table.max()].max())
    return Answers(
        right=[best, tuple(best.values()), {"layer": np.int64(best["layer"]), "head": torch.tensor(best["head"])}],
        wrong=[
            (place(table, table.min()), "one to the left of the diagonal"),
            (runner_up, "of its attention on random words"),
            ({"layer": 4, "head": 0}, "counted from 1"),
            ({"layer": 0, "head": 6}, "counted from 1"),
            ("L0H1", "named by its layer and its number"),
            ({"layer": 0.9, "head": 5.9}, "whole numbers"),
            ({"layer": best["layer"], "head": ...}, "still `...`"),
        ],
    )


def needed_head():
    table, full = checks._difference_without()
    fall = full - table

    def answer(value, shift=0.0):
        where = place(fall, value)
        return {**where, "without": float(table[where["layer"], where["head"]]) + shift}

    best = answer(fall.max())
    return Answers(
        right=[best, {**best, "without": torch.tensor(best["without"] + 0.5)}],
        wrong=[
            (answer(fall.min()), "without this head the difference grows"),
            (answer(fall[fall < 0.9 * fall.max()].max()), "without another it goes to"),
            ({**best, "without": float(fall.max())}, "not the fall"),
            ({**best, "without": best["without"] + 1.5}, "the mean logit difference without"),
            ({"layer": -1, "head": 0, "without": 0.0}, "counted from 1"),
            ({"layer": best["layer"], "head": best["head"]}, "says what is left"),
            (3, "says what is left"),
        ],
    )


# 4.11 statements

TRUTH = {name: truth for name, (truth, _) in checks.STATEMENTS.items()}
STATED = Answers(
    right=[
        TRUTH,
        {name: str(truth) for name, truth in TRUTH.items()},
        {name: int(truth) for name, truth in TRUTH.items()},
    ],
    wrong=[
        *(({**TRUTH, name: not truth}, checks.STATEMENTS[name][1][:30]) for name, truth in TRUTH.items()),
        (dict.fromkeys(TRUTH, "maybe"), "no such answer"),
        ({name: truth for name, truth in TRUTH.items() if name != "g"}, "one judgement for each"),
        ([True] * 7, "a dictionary of judgements"),
    ],
)

BANK = {
    "causal_attention": ATTENTION,
    "layer_norm": LAYER_NORM,
    "stream_parts": PARTS,
    "ablate_head": ABLATE,
    "forward": FORWARD,
    "previous_token_head": HEAD,
    "fact_mlp": STORE,
    "fold": FOLD,
    "looks_back": looks_back(),
    "needed_head": needed_head(),
    "statements": STATED,
}
