"""Chapter 6's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import functools
import itertools
import math
import random

import numpy as np
import torch
import torch.nn.functional as F

from interp_edu import induction_heads
from interp_edu.checks import induction_heads as checks
from interp_edu.hooks import hooked, run_with_cache
from tests.checks.bank import Answers

# 6.1 repeated_rows


def rows_of(draw, begin=True, again=lambda half: half):
    """Rows from a function that draws the random half."""

    def make(rows, period, d_vocab):
        half = draw(rows, period, d_vocab)
        zero = [torch.zeros(len(half), 1, dtype=torch.int64)]
        return torch.cat([*zero * begin, half, again(half)], dim=1)

    return make


def dice(rows, period, d_vocab):
    return torch.randint(1, d_vocab, (rows, period))


def by_numpy(rows, period, d_vocab):
    half = np.random.default_rng().integers(1, d_vocab, size=(rows, period))
    return np.concatenate([np.zeros((rows, 1), dtype=int), np.tile(half, 2)], axis=1)


def by_lists(rows, period, d_vocab):
    halves = [[random.randrange(1, d_vocab) for _ in range(period)] for _ in range(rows)]
    return [[0, *half, *half] for half in halves]


def by_index(rows, period, d_vocab):
    x = torch.empty(rows, 1 + 2 * period, dtype=torch.int32)
    x[:, 0] = 0
    x[:, 1 : period + 1] = (torch.rand(rows, period) * (d_vocab - 1)).int() + 1
    x[:, period + 1 :] = x[:, 1 : period + 1]
    return x


def zeros_are_floats(rows, period, d_vocab):
    half = dice(rows, period, d_vocab)
    return torch.cat([torch.zeros(rows, 1), half, half], dim=1)


def seeded(rows, period, d_vocab):
    generator = torch.Generator().manual_seed(0)
    return rows_of(lambda *a: torch.randint(1, d_vocab, (rows, period), generator=generator))(rows, period, d_vocab)


def deal(rows, period, d_vocab):
    """A permutation for each row; dealt anew where the words do not suffice."""
    cards = [torch.cat([torch.randperm(d_vocab - 1) for _ in range(period)])[:period] + 1 for _ in range(rows)]
    return torch.stack(cards)


def begin_twice(rows, period, d_vocab):
    half = F.pad(dice(rows, period, d_vocab), (1, 0))
    return torch.cat([half, half], dim=1)


REPEATED = Answers(
    right=[
        rows_of(dice),
        by_numpy,
        by_lists,
        by_index,
        lambda rows, period, V: induction_heads.repeated_tokens(rows, period, V),
        rows_of(lambda rows, period, V: torch.multinomial(torch.ones(rows, V - 1), period, replacement=True) + 1),
    ],
    wrong=[
        (rows_of(lambda rows, period, V: torch.randint(0, V, (rows, period))), "the lower end of randint is 1"),
        (rows_of(lambda rows, period, V: torch.randint(1, max(2, V - 1), (rows, period))), "the last word never comes"),
        (rows_of(lambda rows, period, V: torch.randint(2, V, (rows, period))), "word 1 never comes"),
        (rows_of(lambda rows, period, V: torch.randint(1, V + 1, (rows, period))), "should be d_vocab"),
        (rows_of(deal), "randperm deals cards"),
        (rows_of(lambda rows, period, V: dice(1, period, V).expand(rows, -1)), "one row was drawn for all"),
        (rows_of(lambda rows, period, V: dice(rows, 1, V).expand(-1, period)), "one word was drawn for the whole row"),
        (rows_of(dice, again=lambda half: torch.randint(1, 1 + half.max(), half.shape)), "is drawn anew"),
        (rows_of(dice, again=lambda half: half.flip(1)), "in another order"),
        (rows_of(dice, begin=False), "the beginning, word 0, is missing"),
        (begin_twice, "not again before the second half"),
        (rows_of(dice, again=lambda half: half[:, :0]), "should come again"),
        (lambda *a: rows_of(dice)(*a).T, "rows first"),
        (zeros_are_floats, "say dtype=torch.int64"),
        (rows_of(lambda *a: dice(*a).sort().values), "each row are sorted"),
        (rows_of(lambda rows, period, V: (dice(rows, 1, V) + torch.arange(period)) % (V - 1) + 1), "independent"),
        (
            rows_of(lambda rows, period, V: (dice(1, period, V) + torch.arange(rows)[:, None]) % (V - 1) + 1),
            "row above",
        ),
        (
            rows_of(lambda rows, period, V: torch.maximum(dice(rows, period, V), dice(rows, period, V))),
            "all words are equally likely",
        ),
        (
            rows_of(lambda rows, period, V: torch.randn(rows, period).abs().mul(V / 5).int().clamp(1, V - 1)),
            "all words are equally likely",
        ),
        (
            rows_of(lambda rows, period, V: dice(rows, (period + 1) // 2, V).repeat(1, 2)[:, :period]),
            "as often as chance",
        ),
        (functools.cache(rows_of(dice)), "a second call"),
        (
            rows_of(lambda rows, period, V: torch.randint(0, V, (rows, period)).clamp(min=1)),
            "all words are equally likely",
        ),
        (seeded, "is a seed set"),
        (
            lambda rows, period, V: (
                rows_of(dice)(rows, period, V).repeat_interleave(1, 0)[:, 1:].repeat_interleave(1, 1)
            ),
            "word 0, is missing",
        ),
        (lambda rows, period, V: F.pad(dice(rows, period, V).repeat_interleave(2, dim=1), (1, 0)), "on the spot"),
        (lambda rows, period, V: torch.cat([F.pad(dice(rows, period, V), (1, 0))] * 2), "below each other"),
        (lambda rows, period, V: None, "None"),
        (lambda rows, period, V: torch.randint(1, V, rows, 2 * period), "your code raised TypeError"),
    ],
)

# 6.2 prefix_matching_score


def score(keys=checks._after, reduce="sum"):
    return lambda pattern, tokens: checks._mean(checks._given(pattern, tokens, keys, reduce))


def mistaken(words):
    """What a mistake of the check's own list leads to; `words` begin its text."""
    return lambda pattern, tokens: next(
        value for text, value in checks._prefix_mistakes(pattern, tokens) if text.startswith(words)
    )


def by_mask(offset=1, strict=True, asked="targets", weigh="all"):
    """The score with masks, as the page writes it, with one thing or another changed."""

    def prefix_matching_score(pattern, tokens):
        n = tokens.shape[1]
        earlier = tokens[:, :, None] == tokens[:, None, :]
        if strict:
            earlier &= torch.ones(n, n).tril(-1).bool()
        targets = torch.zeros_like(earlier)
        targets[:, :, offset:] = earlier[:, :, : n - offset]
        given = torch.einsum("bhqk,bqk->bqh", pattern, targets.float())
        counts = earlier.any(-1) if asked == "earlier" else targets.any(-1)
        if weigh == "rows":
            return torch.stack([g[c].mean(0) for g, c in zip(given, counts, strict=True) if c.any()]).mean(0)
        return given[counts].mean(0)

    return prefix_matching_score


def by_cells(pattern, tokens):
    tokens, heads = tokens.tolist(), []
    for h in range(pattern.shape[1]):
        total, count = 0.0, 0
        for b, q in itertools.product(range(len(tokens)), range(len(tokens[0]))):
            earlier = [k for k in range(q) if tokens[b][k] == tokens[b][q]]
            total += sum(pattern[b, h, q, k + 1].item() for k in earlier)
            count += bool(earlier)
        heads.append(total / count)
    return heads


def by_numpy_masks(pattern, tokens):
    t, p = tokens.numpy(), pattern.numpy().astype(np.float64)
    n = t.shape[1]
    earlier = np.tril(t[:, :, None] == t[:, None, :], -1)
    return (p[:, :, :, 1:] * earlier[:, None, :, : n - 1]).sum((0, 2, 3)) / earlier.any(2).sum()


def in_place(pattern, tokens):
    targets = induction_heads.after_match(tokens, bos=None)
    pattern *= targets[:, None]
    return pattern.sum((0, 2, 3)).div_(targets.any(-1).sum())


def wrapping(pattern, tokens):
    """roll puts the last key's mark on the first key."""
    n = tokens.shape[1]
    earlier = (tokens[:, :, None] == tokens[:, None, :]) & torch.ones(n, n).tril().bool()
    targets = earlier.roll(1, dims=2)
    return (pattern * targets[:, None]).sum(-1).transpose(1, 2)[targets.any(-1)].mean(0)


PREFIX = Answers(
    right=[by_mask(), by_cells, by_numpy_masks, in_place, score(), by_mask(asked="earlier")],
    wrong=[
        (by_mask(0), "themselves: go one to the right"),
        (by_mask(2), "looks two positions after"),
        (score(lambda row: checks._after(row, -1)), "one position before"),
        (mistaken("only the last earlier"), "only the last earlier"),
        (mistaken("only the first earlier"), "only the first earlier"),
        (score(reduce="mean"), "averaged over a query's successors"),
        (score(reduce="amax"), "with most attention"),
        (
            lambda p, t: score()(p, t) * 0 + (p * induction_heads.after_match(t)[:, None]).sum(-1).mean((0, 2)),
            "over all queries",
        ),
        (by_mask(weigh="rows"), "a mean of the rows' means"),
        (mistaken("a mean of the rows' means, with 0"), "a mean of the rows' means"),
        (by_mask(strict=False), "only positions before it may match"),
        (mistaken("queries count whose"), "only positions before it may match"),
        (wrapping, "averaged over all queries"),
        (mistaken("the query's own"), "own position is left out"),
        (mistaken("this counts back"), "only rows that repeat as a whole"),
        (lambda p, t: score()(p.mT, t), "queries and keys are exchanged"),
        (lambda p, t: score()(p[:1], t[:1]), "only the first row"),
        (lambda p, t: score()(p[:, :1], t).expand(p.shape[1]), "list the pairs"),
        (
            lambda p, t: (
                (p * induction_heads.after_match(t)[:, None]).sum((0, 2, 3)) / induction_heads.after_match(t).sum()
            ),
            "list the pairs",
        ),
        (lambda p, t: score()(p.softmax(-1), t), "list the pairs"),
        (lambda p, t: score()(F.one_hot(p.argmax(-1), p.shape[-1]), t), "list the pairs"),
        (lambda p, t: score()(p, t).mean(), "the heads were averaged"),
        (
            lambda p, t: torch.stack([score()(p[i : i + 1], t[i : i + 1]) for i in range(len(t))]),
            "for each row and head",
        ),
        (mistaken("this is a sum"), "divide by their number"),
        (lambda p, t: score()(p, t).flip(0), "list the pairs"),
        (lambda p, t: p.diagonal(-(t.shape[1] // 2 - 1), dim1=2, dim2=3).mean((0, 2)), "and one head"),
        (lambda p, t: [f"{s:.2f}" for s in score()(p, t)], "should be a tensor"),
        (lambda p, t: score()(p, t) / 0, "holds infinities"),
    ],
)

# 6.3 in_context_score


def by_nll(logits, tokens, early, late):
    logs = torch.log_softmax(logits, dim=-1)
    losses = -logs[:, :-1].gather(2, tokens[:, 1:, None])[..., 0].mean(dim=0)
    return losses[late - 1] - losses[early - 1]


def by_numpy_loss(logits, tokens, early, late):
    x = logits.numpy().astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    logs = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return np.mean([logs[b, early - 1, tokens[b, early]] - logs[b, late - 1, tokens[b, late]] for b in range(len(x))])


def in_context(change):
    """The score from each row's loss, [batch, pos - 1], as a function of them and of the indices of the two tokens."""

    def in_context_score(logits, tokens, early, late):
        losses = F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")
        return change(losses, early - 1, late - 1)

    return in_context_score


def at(back=1, shift=0, logs=lambda x: x.log_softmax(-1)):
    """The score from other places, or from something else than log probabilities."""

    def in_context_score(logits, tokens, early, late):
        def loss(p):
            return -logs(logits)[range(len(tokens)), p + shift - back, tokens[:, p + shift]].mean()

        return loss(late) - loss(early)

    return in_context_score


IN_CONTEXT = Answers(
    right=[
        by_nll,
        by_numpy_loss,
        at(),
        in_context(lambda x, early, late: (x[:, late] - x[:, early]).mean()[None]),
        lambda logits, tokens, early, late: float(by_nll(logits.double(), tokens, early, late)),
    ],
    wrong=[
        (at(back=0), "predict the next one: go one back"),
        (at(shift=1), "the loss of the token after it"),
        (at(back=0, shift=-1), "one too early"),
        (at(back=-1), "the logits one after"),
        (in_context(lambda x, early, late: (x[:, early] - x[:, late]).mean()), "the sign is turned"),
        (at(logs=lambda x: x.softmax(-1)), "minus the logarithm of one"),
        (at(logs=lambda x: x), "these are logits"),
        (at(logs=lambda x: x.log_softmax(0)), "over the rows"),
        (at(logs=lambda x: x.log_softmax(1)), "over the positions"),
        (at(logs=lambda x: x.softmax(-1).log2()), "in bits"),
        (at(logs=lambda x: x.softmax(-1).log10()), "base 10"),
        (at(logs=lambda x: x.softmax(-1).log()), "the logarithm of zero"),
        (
            in_context(lambda x, early, late: x[:, : late + 1].mean() - x[:, : early + 1].mean()),
            "all tokens up to a position",
        ),
        (
            in_context(lambda x, early, late: x[:, :late].mean() - x[:, :early].mean()),
            "all tokens before a position",
        ),
        (in_context(lambda x, early, late: x[0, late] - x[0, early]), "only the first row"),
        (in_context(lambda x, early, late: (x[:, late] - x[:, early]).sum()), "a sum over rows"),
        (lambda x, t, early, late: by_nll(x, t, min(early, late), max(early, late)), "early=6 and late=2"),
        (lambda x, t, early, late: by_nll(x, t.flip(0), early, late), "rows of"),
        (in_context(lambda x, early, late: x[:, late] - x[:, early]), "wrong shape"),
        (in_context(lambda x, early, late: x[:, late].mean().exp() - x[:, early].mean().exp()), "perplexities"),
        (in_context(lambda x, early, late: x[:, late].mean() / x[:, early].mean()), "a ratio"),
        (in_context(lambda x, early, late: x[:, late].mean()), "the late loss alone"),
        (in_context(lambda x, early, late: x[:, early:late].mean()), "worked by hand"),
        (lambda logits, tokens, early, late: F.cross_entropy(logits[:, late], tokens[late]), "your code raised"),
        (lambda *a: None, "None"),
    ],
)

# 6.4 induction_head

WORD, PREVIOUS, OUT = range(3)


def head(query=WORD, key=PREVIOUS, value=WORD, out=OUT, sharp=20.0, root=True, rest=0.5, no_value=True, gain=1.0):
    """Weights of a head that reads these parts of the stream; `rest` is the score of word 0, relative to a match."""

    def make(V):
        part = [slice(i * V, i * V + V) for i in range(3)]
        W_Q, W_K, W_V = (torch.zeros(3 * V, V + 1) for _ in range(3))
        W_O = torch.zeros(V + 1, 3 * V)
        size = sharp * (math.sqrt(V + 1) if root else 1)
        W_Q[part[query], :V] = 2 * size * torch.eye(V)
        W_K[part[key], :V] = torch.eye(V)
        W_Q[part[query], V] = 2 * size * rest
        W_K[0, V] = 1
        W_V[part[value], :V] = torch.eye(V)
        if no_value:
            W_V[value * V] = 0
        W_O[:V, part[out]] = gain * torch.eye(V)
        return {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O}

    return make


def on_a_circle(V):
    """Right with three dimensions: words are points on a circle, a match is the nearest one."""
    angle = 2 * math.pi * torch.arange(V) / V
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    step = 1 - math.cos(2 * math.pi / V)
    W_Q, W_K = np.zeros((3 * V, 3)), np.zeros((3 * V, 3))
    W_Q[:V, :2] = points * 40 / step
    W_K[V : 2 * V, :2] = points
    W_Q[:V, 2] = (1 - step / 2) * 40 / step
    W_K[0, 2] = 1
    W_V = np.eye(3 * V)
    W_V[0] = 0
    W_V[V:] = 0
    return {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": np.roll(np.eye(3 * V), 2 * V, axis=1)}


def bare(V):
    """Right without a dimension for the rest: word 0's key answers every query."""
    W = head()(V)
    W["W_K"] = W["W_K"][:, :V]
    W["W_K"][0] = 0.5
    W["W_Q"] = W["W_Q"][:, :V]
    return {name: value.tolist() for name, value in W.items()}


def changed(**edits):
    """The right weights, and after them what `edits` make of some: name=function of (weights, d_vocab)."""

    def make(V):
        W = head()(V)
        return {name: edits[name](value, V) if name in edits else value for name, value in W.items()}

    return make


def without_word_zero(W_V, V):
    W_V[0, 0] = 1
    return W_V


HEAD = Answers(
    right=[
        head(),
        on_a_circle,
        bare,
        head(rest=0.6, sharp=30.0),
        changed(W_V=lambda W, V: without_word_zero(W, V), W_O=lambda W, V: W.index_fill(0, torch.tensor(0), 0)),
    ],
    wrong=[
        (head(key=WORD), "a duplicate-token head"),
        (head(value=PREVIOUS), "writes the current word again"),
        (head(rest=0.0), "give it a place to rest"),
        (head(rest=-1.0), "give it a place to rest"),
        (head(rest=1.0), "rests on word 0 although there is a match"),
        (head(rest=1.5), "rests on word 0 although there is a match"),
        (head(sharp=1.0), "not sharply"),
        (head(sharp=4.0, root=False), "not sharply"),
        (head(sharp=0.0), "it attends to everything alike"),
        (head(no_value=False), "word 0 needs a value of zero"),
        (head(out=WORD), "from 2 * d_vocab on"),
        (head(out=PREVIOUS), "from 2 * d_vocab on"),
        (head(query=PREVIOUS, key=WORD), "W_Q and W_K exchanged"),
        (lambda V: {**(W := head()(V)), "W_Q": W["W_K"] * 200, "W_K": W["W_Q"] / 200}, "W_Q and W_K exchanged"),
        (head(gain=2.0), "weight one"),
        (head(gain=-1.0), "weight one"),
        (head(gain=0.0), "nothing is written"),
        (changed(W_V=lambda W, V: W.index_fill(0, torch.tensor(V - 1), 0)), "the successors' average"),
        (changed(W_Q=lambda W, V: W.index_fill(0, torch.tensor(V - 1), 0)), "d_vocab=9"),
        (
            changed(W_K=lambda W, V: W + 0.01 * F.pad(torch.arange(V)[:, None].expand(V, V + 1), (0, 0, 0, 2 * V))),
            "equally",
        ),
        (changed(W_O=lambda W, V: W + W.roll(V, 1)), "2 * d_vocab on"),
        (changed(W_Q=lambda W, V: -W), "only where the two agree"),
        (changed(W_O=lambda W, V: W.roll(1, 1)), "d_vocab=9"),
        (
            changed(
                W_K=lambda W, V: W.index_add(0, torch.arange(1, V), 0.1 * torch.ones(V - 1, 1) * torch.arange(V + 1))
            ),
            "give it a place to rest",
        ),
        (lambda V: {name: W.T for name, W in head()(V).items()}, "wrong shape"),
        (lambda V: {name: W for name, W in head()(V).items() if name != "W_O"}, "a dictionary with W_Q"),
        (lambda V: tuple(head()(V).values()), "a dictionary with W_Q"),
        (lambda V: head()(9), "wrong shape"),
        (lambda V: {**head()(V), "W_V": head()(V)["W_V"][:, :-1]}, "wrong shape"),
    ],
)

# 6.5 keys_only


def said_by(model, tokens, sender):
    _, cache = run_with_cache(model, tokens, f"blocks.{sender[0]}.attn.hook_result")
    return cache["result", sender[0]][:, :, sender[1]]


def cutting(edit, name="k_input", at="receiver"):
    """With a hook at the receiver's layer: `edit` gets the activation, what the sender wrote, and the receiver's head."""

    def keys_only(model, tokens, sender, receiver):
        said = said_by(model, tokens, sender)
        layer = receiver[0] if at == "receiver" else sender[0]
        names = [f"blocks.{layer}.{'attn.' * (side in 'qkvz')}hook_{side}" for side in name.split()]
        with hooked(model, [(names, lambda x, hook: edit(x, said, receiver[1]))]):
            return model(tokens)

    return keys_only


def subtract(x, said, head):
    x[:, :, head] -= said


def subtract_from_all(x, said, head):
    return x - (said[:, :, None] if x.ndim == 4 else said)


def put_keys(norm=True):
    """With new keys, worked out from the stream."""

    def keys_only(model, tokens, sender, receiver):
        layer, head = receiver
        said = said_by(model, tokens, sender)
        _, cache = run_with_cache(model, tokens, f"blocks.{layer}.hook_resid_pre")
        block = model.blocks[layer]
        x = cache["resid_pre", layer] - said
        x = F.layer_norm(x, x.shape[-1:], block.ln1.w, block.ln1.b) if norm else x

        def new(k, hook):
            k = k.clone()
            k[:, :, head] = x @ block.attn.W_K[head] + block.attn.b_K[head]
            return k

        with hooked(model, [(f"blocks.{layer}.attn.hook_k", new)]):
            return model(tokens)

    return keys_only


def from_there_on(model, tokens, sender, receiver):
    """Right: runs only what comes after the cut."""
    said = said_by(model, tokens, sender)
    stream = model(tokens, stop_at_layer=receiver[0])
    with hooked(model, [(f"blocks.{receiver[0]}.hook_k_input", lambda x, hook: subtract(x, said, receiver[1]))]):
        return model(stream, start_at_layer=receiver[0])


def exchanged(model, tokens, sender, receiver):
    said = said_by(model, tokens, receiver)
    with hooked(model, [(f"blocks.{sender[0]}.hook_k_input", lambda x, hook: subtract(x, said, sender[1]))]):
        return model(tokens)


def other_sender(model, tokens, sender, receiver):
    return cutting(subtract)(model, tokens, (sender[0], receiver[1]), receiver)


def leaving_a_hook(model, tokens, sender, receiver):
    said = said_by(model, tokens, sender)
    name = f"blocks.{receiver[0]}.hook_k_input"
    model.attached.setdefault(name, []).append(lambda x, hook: subtract(x, said, receiver[1]))
    return model(tokens)


def deleting_all_hooks(model, tokens, sender, receiver):
    logits = cutting(subtract)(model, tokens, sender, receiver)
    model.attached.clear()
    return logits


def editing_weights(model, tokens, sender, receiver):
    model.blocks[sender[0]].attn.W_O.data[sender[1]] = 0
    return model(tokens)


def whole_layer(model, tokens, sender, receiver):
    _, cache = run_with_cache(model, tokens, f"blocks.{sender[0]}.hook_attn_out")
    said = cache["attn_out", sender[0]]
    with hooked(model, [(f"blocks.{receiver[0]}.hook_k_input", lambda x, hook: subtract(x, said, receiver[1]))]):
        return model(tokens)


def by_cut(model, tokens, sender, receiver):
    with hooked(model, induction_heads.cut(model, tokens, [sender], [receiver])):
        return model(tokens)


def outside_the_block(model, tokens, sender, receiver):
    said = said_by(model, tokens, sender)
    with hooked(model, [(f"blocks.{receiver[0]}.hook_k_input", lambda x, hook: subtract(x, said, receiver[1]))]):
        pass
    return model(tokens)


def after_norm(model, tokens, sender, receiver):
    W_K = model.blocks[receiver[0]].attn.W_K[receiver[1]]
    return cutting(lambda k, said, head: subtract(k, said @ W_K, head), "k")(model, tokens, sender, receiver)


def frozen_scale(model, tokens, sender, receiver):
    block = model.blocks[receiver[0]]
    _, cache = run_with_cache(model, tokens, f"blocks.{receiver[0]}.ln1.hook_scale")
    scale = cache[f"blocks.{receiver[0]}.ln1.hook_scale"]

    def edit(k, said, head):
        subtract(k, (said - said.mean(-1, keepdim=True)) / scale * block.ln1.w @ block.attn.W_K[head], head)

    return cutting(edit, "k")(model, tokens, sender, receiver)


def keys_of_another_run(model, tokens, sender, receiver):
    """The keys as they are if the sender is ablated: what other components made of its words is gone from them too."""
    layer, said = receiver[0], said_by(model, tokens, sender)
    with hooked(model, [(f"blocks.{sender[0]}.hook_attn_out", lambda x, hook: x - said)]):
        _, cache = run_with_cache(model, tokens, f"blocks.{layer}.attn.hook_k")
    new = cache["k", layer]
    return cutting(lambda k, said, head: k.index_copy(2, torch.tensor([head]), new[:, :, [head]]), "k")(
        model, tokens, sender, receiver
    )


def in_one_run(model, tokens, sender, receiver):
    """Right: what the sender says is caught on the way."""
    said = []
    hooks = [
        (f"blocks.{sender[0]}.attn.hook_result", lambda x, hook: said.append(x[:, :, sender[1]].clone())),
        (f"blocks.{receiver[0]}.hook_k_input", lambda x, hook: subtract(x, said[0], receiver[1])),
    ]
    with hooked(model, hooks):
        return model(tokens)


KEYS = Answers(
    right=[
        cutting(subtract),
        cutting(lambda x, said, head: x - said[:, :, None] * F.one_hot(torch.tensor(head), x.shape[2])[:, None]),
        lambda *a: put_keys()(*a).numpy(),
        from_there_on,
        in_one_run,
    ],
    wrong=[
        (cutting(subtract_from_all, "resid_pre"), "all who read the stream lose it"),
        (cutting(subtract_from_all), "all heads of the layer lose it in their keys"),
        (cutting(subtract_from_all, "q_input k_input v_input"), "the whole layer loses it"),
        (cutting(subtract, "q_input"), "the queries lose it"),
        (cutting(subtract, "v_input"), "the values lose it"),
        (cutting(subtract, "q_input k_input v_input"), "its keys alone should"),
        (keys_of_another_run, "what others made of it"),
        (whole_layer, "with its other heads"),
        (cutting(subtract_from_all, "attn_out", at="sender"), "the sender is ablated"),
        (after_norm, "subtracted after LayerNorm"),
        (frozen_scale, "LayerNorm's scale"),
        (put_keys(norm=False), "hook_k_input"),
        (cutting(subtract, at="sender"), "lose it, not those of"),
        (exchanged, "sender and receiver are exchanged"),
        (other_sender, "the keys lose what"),
        (cutting(lambda x, said, head: subtract(x, -said, head)), "it is added"),
        (cutting(lambda x, said, head: x.index_copy(2, torch.tensor([head]), said[:, :, None])), "all else"),
        (cutting(lambda x, said, head: x[:, :, head] - said), "returned shape"),
        (cutting(lambda x, said, head: None), "nothing was changed"),
        (cutting(lambda x, said, head: x[:, head].sub_(said)), "your code raised"),
        (outside_the_block, "nothing was changed"),
        (by_cut, "differs from the mean over rows"),
        (editing_weights, "no weights are edited"),
        (leaving_a_hook, "no hook stays attached"),
        (deleting_all_hooks, "attached before is still there"),
        (lambda *a: (cutting(subtract)(*a), {}), "and nothing else"),
        (lambda *a: cutting(subtract)(*a)[:, -1], "wrong shape"),
    ],
)

# 6.6 to 6.8: measured, so that another training changes nothing here


def phase():
    table, steps = checks._growth(), checks.STEPS
    first = {
        name: next(i for i, score in enumerate(table[name][layer]) if score >= table[name][layer, -1] / 2)
        for layer, name in enumerate(table)
    }
    truth = {name: steps[i] for name, i in first.items()}
    return Answers(
        right=[
            truth,
            {name: float(step) for name, step in truth.items()},
            {n: torch.tensor(s) for n, s in truth.items()},
        ],
        wrong=[
            ({"previous": truth["induction"], "induction": truth["previous"]}, "the two are exchanged"),
            ({name: steps[i - 1] for name, i in first.items()}, "the last step below half"),
            ({**truth, "induction": steps[first["induction"] - 1]}, "the last step below half"),
            (dict(first), "an index into the list of steps"),
            ({**truth, "previous": steps[int(table["previous"][0].argmax())]}, "where it is highest"),
            ({**truth, "induction": steps[int(table["induction"][1].argmax())]}, "where it is highest"),
            ({"previous": None, "induction": None}, "where it is highest, or the end"),
            ({**truth, "previous": 0}, "these are the scores of layer 1"),
            ({**truth, "induction": 0}, "these are the scores of layer 0"),
            ({**truth, "induction": steps[first["induction"] + 1]}, "first reaches half"),
            ({**truth, "previous": steps[first["previous"] + 2]}, "not a score of 0.5"),
            ({**truth, "induction": 150}, "a step at which the model was kept"),
            ({**truth, "induction": "140"}, "should be a tensor"),
            ({"previous": truth["previous"]}, "a dictionary with previous, induction"),
            (tuple(truth.values()), "a dictionary with previous, induction"),
        ],
    )


def offset():
    table = checks._by_offset(2)
    best = table[1].amax(0)
    place = int(best.argmax())
    truth = {"offset": place, "attention": float(best.max()), "usual": float(best[1])}
    layer_0 = table[0].amax(0)

    def attention(value, at=place):
        return {**truth, "offset": at, "attention": float(value)}

    return Answers(
        right=[
            truth,
            {
                "offset": torch.tensor(place),
                "attention": best.max() + 0.015,
                "usual": np.float32(truth["usual"] - 0.01),
            },
            {"offset": float(place), "attention": round(truth["attention"], 2), "usual": [round(truth["usual"], 2)][0]},
        ],
        wrong=[
            ({**truth, "offset": 1}, "where an induction head usually looks"),
            ({**truth, "offset": place + 1}, "one off"),
            ({**truth, "offset": place - 1}, "one off"),
            ({**truth, "offset": 20 - place}, "which is 20 before the query"),
            ({**truth, "offset": -place}, "where is the highest attention"),
            (attention(layer_0.max(), int(layer_0.argmax())), "layer 1 is asked"),
            (attention(checks._by_offset(0)[1].max()), "this is seed 0"),
            (attention(checks._by_offset(1)[1].max()), "this is seed 1"),
            (attention(table[1, :, place].mean()), "the mean over heads"),
            (attention(checks._by_offset(2, 11)[1].max()), "a shorter period"),
            (attention(best[1]), "this is the usual score"),
            (attention(100 * best.max()), "give or take 0.025"),
            ({**truth, "usual": truth["attention"]}, "at the other offset"),
            ({**truth, "attention": truth["usual"], "usual": truth["attention"]}, "this is the usual score"),
            ({**truth, "usual": 0.85}, "the highest usual score"),
            ({**truth, "usual": float("nan")}, "holds NaN"),
            ({**truth, "attention": [0.7, 0.8]}, "attention"),
            ({**truth, "usual": ...}, "still `...`"),
            ({"offset": place}, "a dictionary with offset, attention, usual"),
            (place, "a dictionary with offset, attention, usual"),
        ],
    )


def redundant():
    full, *without = checks._without_strongest()
    one, n = without[0], len(without)
    truth = {"without_one": float(one[32:].mean()), "heads": n}
    return Answers(
        right=[
            truth,
            {"without_one": np.float64(truth["without_one"] + 0.03), "heads": torch.tensor(n)},
            {"without_one": one[32:].mean(), "heads": float(n)},
        ],
        wrong=[
            ({**truth, "heads": n - 1}, "while the loss stays below 1"),
            ({**truth, "heads": n + 1}, "then the two strongest together"),
            ({**truth, "heads": 1}, "is the first half in the mean"),
            ({**truth, "heads": 6}, "not one at a time"),
            ({**truth, "heads": 0}, "not one at a time"),
            ({**truth, "heads": None}, "not one at a time"),
            ({**truth, "without_one": float(one[31:].mean())}, "the first word of the repetition"),
            ({**truth, "without_one": float(one.mean())}, "the mean over the whole row"),
            ({**truth, "without_one": float(one[:31].mean())}, "the first half"),
            ({**truth, "without_one": float(without[1][32:].mean())}, "two are gone here"),
            ({**truth, "without_one": truth["without_one"] - float(full[32:].mean())}, "by how much the loss rises"),
            ({**truth, "without_one": "small"}, "should be a tensor"),
            ({"heads": n}, "a dictionary with without_one, heads"),
            (n, "a dictionary with without_one, heads"),
        ],
    )


# 6.9 statements

TRUTH = {name: truth for name, (truth, _) in checks.STATEMENTS.items()}
STATED = Answers(
    right=[
        TRUTH,
        {name: str(truth) for name, truth in TRUTH.items()},
        {name: int(truth) for name, truth in TRUTH.items()},
        {name: np.bool_(truth) for name, truth in TRUTH.items()},
    ],
    wrong=[
        *(({**TRUTH, name: not truth}, checks.STATEMENTS[name][1][:30]) for name, truth in TRUTH.items()),
        (dict.fromkeys(TRUTH, "maybe"), "no such answer"),
        ({name: truth for name, truth in TRUTH.items() if name != "g"}, "one judgement for each"),
        ([True] * 7, "a dictionary of judgements"),
    ],
)

BANK = {
    "repeated_rows": REPEATED,
    "prefix_matching_score": PREFIX,
    "in_context_score": IN_CONTEXT,
    "induction_head": HEAD,
    "keys_only": KEYS,
    "phase": phase(),
    "offset": offset(),
    "redundant": redundant(),
    "statements": STATED,
}
