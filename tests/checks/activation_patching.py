"""Chapter 8's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import functools
import itertools

import numpy as np
import torch

from interp_edu.hooks import hooked, run_with_cache
from interp_edu.metrics import logit_difference
from interp_edu.patching import Patching
from tests.checks.bank import Answers

# 8.1 patched_logits


def patching(change, swap=False):
    """A run with a hook made of `change(x, source, position)`; `swap` turns denoising into noising."""

    def patched_logits(model, clean, corrupted, name, position):
        clean, corrupted = (corrupted, clean) if swap else (clean, corrupted)
        source = run_with_cache(model, clean)[1][name]
        with hooked(model, [(name, lambda x, hook: change(x, source, position))]):
            return model(corrupted)

    return patched_logits


def put(index):
    def change(x, source, position):
        x[index(position)] = source[index(position)]

    return change


def here(x, source, position):
    x[:, position] = source[:, position]


def by_where(x, source, position):
    mask = torch.arange(x.shape[1]) == position % x.shape[1]
    return torch.where(mask.view(1, -1, *[1] * (x.ndim - 2)), source, x)


def row_by_row(model, clean, corrupted, name, position):
    """Right: a run for each row, and only the activation that is wanted."""
    rows = []
    for a, b in zip(clean, corrupted, strict=True):
        _, cache = run_with_cache(model, a[None], name)

        def patch(x, hook, cache=cache):
            return torch.cat([x[:, :position], cache[hook.name][:, position, None], x[:, position:][:, 1:]], dim=1)

        with hooked(model, [(name, patch)]):
            rows.append(model(b[None])[0])
    return torch.stack(rows).detach().numpy()


def left_behind(model, clean, corrupted, name, position):
    _, cache = run_with_cache(model, clean)
    model.attached.setdefault(name, []).append(lambda x, hook: here(x, cache[name], position))
    return model(corrupted)


def clears_all(model, clean, corrupted, name, position):
    logits = patching(here)(model, clean, corrupted, name, position)
    model.attached.clear()
    return logits


def own_activation(model, clean, corrupted, name, position):
    return patching(here)(model, corrupted, corrupted, name, position)


def with_cache(model, clean, corrupted, name, position):
    logits, cache = run_with_cache(model, clean)
    return logits, cache


def outside(model, clean, corrupted, name, position):
    with hooked(model, [(name, lambda x, hook: None)]):
        pass
    return model(corrupted)


def first_row_only(x, source, position):
    x[0, position] = source[0, position]


def first_rows(x, source, position):
    x[:, position] = source[0, position]


def added(x, source, position):
    x[:, position] += source[:, position]


def zero(x, source, position):
    x[:, position] = 0


def renamed(x, source, position):
    x = x.clone()
    x[:, position] = source[:, position]


def after(x, source, position):
    x[:, (position + 1) % x.shape[1]] = source[:, (position + 1) % x.shape[1]]


PATCHED_LOGITS = Answers(
    right=[patching(here), patching(by_where), row_by_row],
    wrong=[
        (patching(here, swap=True), "this is noising"),
        (patching(lambda x, source, p: source), "all positions are patched"),
        (patching(after), "position"),
        (patching(put(lambda p: (slice(None), p - 1))), "off by one"),
        (patching(put(lambda p: (slice(None), slice(0, p + 1)))), "at position"),
        (patching(put(lambda p: (slice(None), -1))), "only the last position"),
        (own_activation, "nothing was changed"),
        (patching(renamed), "nothing was changed"),
        (outside, "nothing was changed"),
        (patching(first_row_only), "only the first row"),
        (patching(first_rows), "into all rows"),
        (patching(added), "was added"),
        (patching(zero), "that is ablation"),
        (patching(put(lambda p: (p,))), "a"),
        (left_behind, "a hook stays attached"),
        (clears_all, "and no others"),
        (with_cache, "logits and nothing else"),
        (lambda model, clean, *_: model(clean), "clean run's"),
        (lambda model, clean, corrupted, *_: model(corrupted)[:, -1], "wrong shape"),
        (lambda *_: None, "is None"),
    ],
)

# 8.2 restored


def difference(logits, right, wrong):
    rows = torch.arange(len(right))
    return logits[rows, right] - logits[rows, wrong]


def scale(share, of=difference):
    """Right if `share(high, low, value)`, of one number for each row each, is."""

    def restored(clean, corrupted, patched, right, wrong):
        low, high, value = (of(x, right, wrong) for x in (corrupted, clean, patched))
        return share(high, low, value)

    return restored


def ratio(high, low, value):
    return (value.mean() - low.mean()) / (high.mean() - low.mean())


def by_gather(clean, corrupted, patched, right, wrong):
    def mean(x):
        return (x.gather(1, right[:, None]) - x.gather(1, wrong[:, None])).mean().item()

    return (mean(patched) - mean(corrupted)) / (mean(clean) - mean(corrupted))


def by_loop(clean, corrupted, patched, right, wrong):
    low = high = value = 0.0
    for row, (i, j) in enumerate(zip(right.tolist(), wrong.tolist(), strict=True)):
        low += float(corrupted[row, i] - corrupted[row, j])
        high += float(clean[row, i] - clean[row, j])
        value += float(patched[row, i] - patched[row, j])
    return np.float32((value - low) / (high - low))


RESTORED = Answers(
    right=[
        scale(ratio),
        by_gather,
        by_loop,
        scale(lambda h, low, v: (1 - (h.sum() - v.sum()) / (h.sum() - low.sum())).reshape(1)),
        scale(ratio, lambda x, r, w: difference(x.log_softmax(-1), w, r)),  # both signs turned: the same share
    ],
    wrong=[
        (scale(lambda h, low, v: ratio(low, h, v)), "exchanged"),
        (scale(lambda h, low, v: ((v - low) / (h - low)).mean()), "a mean of ratios"),
        (scale(lambda h, low, v: (v - low).mean() / h.mean()), "divided by the clean value alone"),
        (scale(lambda h, low, v: v.mean() / (h - low).mean()), "5 rows"),
        (scale(lambda h, low, v: v.mean() / h.mean()), "5 rows"),
        (scale(lambda h, low, v: (v - low).mean()), "divide it by clean minus corrupted"),
        (scale(lambda h, low, v: v.mean()), "put it on the scale"),
        (scale(lambda h, low, v: -ratio(h, low, v)), "sign of the denominator"),
        (scale(lambda h, low, v: ratio(h, low, v).clamp(0, 1)), "cut off"),
        (scale(lambda h, low, v: ratio(h, low, v).abs()), "the sign"),
        (scale(lambda h, low, v: ratio(h[:1], low[:1], v[:1])), "the first row alone"),
        (scale(lambda h, low, v: (v - low) / (h - low)), "a number for each row"),
        (scale(ratio, lambda x, r, w: difference(x.softmax(-1), r, w)), "probabilities"),
        (scale(ratio, lambda x, r, w: x.softmax(-1)[range(len(r)), r]), "the right token's probability"),
        (scale(ratio, lambda x, r, w: x[range(len(r)), r]), "only the right token's logit"),
        (scale(ratio, lambda x, r, w: x[:, r] - x[:, w]), "use torch.arange or gather"),
        (scale(ratio, lambda x, r, w: x[0, r] - x[0, w]), "5 rows"),
        (lambda *_: None, "is None"),
    ],
)

# 8.3 head_sweep


def sweep(put_in=None, *, swap=False, share=ratio, cells=lambda layer, head, cfg: [(layer, head)], last=-1, keep=False):
    """A loop over heads, with a slip or none. `keep` gathers the hooks of all heads so far."""

    def put_one(z, source, head):
        z[:, :, head] = source[:, :, head]

    def head_sweep(model, clean, corrupted, right, wrong):
        clean, corrupted = (corrupted, clean) if swap else (clean, corrupted)
        logits, cache = run_with_cache(model, clean)
        high, low = difference(logits[:, last], right, wrong), difference(model(corrupted)[:, last], right, wrong)
        table, hooks = torch.zeros(model.cfg.n_layers, model.cfg.n_heads), []
        for layer, head in itertools.product(*map(range, table.shape)):
            hooks = hooks if keep else []
            for at, h in cells(layer, head, model.cfg):
                change = functools.partial(put_in or put_one, head=h)
                name = f"blocks.{at}.attn.hook_z"
                hooks.append((name, lambda z, hook, change=change: change(z, cache[hook.name])))
            with hooked(model, hooks):
                value = difference(model(corrupted)[:, last], right, wrong)
            table[layer, head] = share(high, low, value)
        return table

    return head_sweep


def by_patching(model, clean, corrupted, right, wrong):
    return Patching(model, clean, corrupted, logit_difference(right, wrong)).sweep("z").values


def by_lists(model, clean, corrupted, right, wrong):
    return sweep()(model, clean, corrupted, right, wrong).double().T.contiguous().T.tolist()


def in_place_weights(model, clean, corrupted, right, wrong):
    table = sweep()(model, clean, corrupted, right, wrong)
    model.blocks[0].attn.W_O.data[0] = 0
    return table


def last_head_late(model, clean, corrupted, right, wrong):
    table = sweep()(model, clean, corrupted, right, wrong)
    return table[:, -1:].repeat(1, table.shape[1])


def last_position(z, source, head):
    z[:, -1, head] = source[:, -1, head]


def whole(z, source, head):
    return source


def as_position(z, source, head):
    z[:, head] = source[:, head]


def not_written(z, source, head):
    z.clone()[:, :, head] = source[:, :, head]


HEAD_SWEEP = Answers(
    right=[sweep(), by_patching, by_lists],
    wrong=[
        (sweep(swap=True), "this is noising"),
        (sweep(swap=True, share=lambda h, low, v: 1 - ratio(h, low, v)), "this is noising"),
        (sweep(share=lambda h, low, v: ratio(low, h, v)), "turned round"),
        (sweep(last_position), "only the last position"),
        (sweep(whole), "all heads of the layer"),
        (sweep(as_position), "random model"),
        (sweep(not_written), "nothing was changed"),
        (lambda *args: sweep()(*args).T, "transposed"),
        (sweep(share=lambda h, low, v: v.mean()), "put them on the scale"),
        (sweep(share=lambda h, low, v: (v - low).mean()), "divide it by"),
        (sweep(share=lambda h, low, v: (v - low).mean() / h.mean()), "divided by the clean value alone"),
        (sweep(share=lambda h, low, v: ((v - low) / (h - low)).mean()), "a mean of ratios"),
        (sweep(share=lambda h, low, v: ratio(h[0], low[0], v[0])), "a random model"),
        (sweep(share=lambda h, low, v: ratio(h, low, v).clamp(0, 1)), "cut off"),
        (sweep(keep=True), "patches add up"),
        (sweep(cells=lambda layer, head, cfg: [(layer, h) for h in range(head + 1)]), "head to head of a layer"),
        (sweep(cells=lambda layer, head, cfg: [(i, head) for i in range(cfg.n_layers)]), "in every layer"),
        (sweep(last=0), "the first one"),
        (last_head_late, "looks `head` up"),
        (in_place_weights, "leaves the weights alone"),
        (lambda *args: sweep()(*args).flatten(), "[n_layers, n_heads]"),
    ],
)

# 8.4 attribution


def gradients(entry=None, *, at_clean=False, metric=torch.mean, divide=lambda high, low: high - low):
    """A first-order estimate; `entry` makes a number for each head of how z differs and its gradient."""

    def product(x, g):
        return (x * g).sum(dim=(0, 1, 3))

    def attribution(model, clean, corrupted, right, wrong):
        def run(tokens):
            with hooked(model, [("hook_embed", lambda x, hook: x.requires_grad_())]):
                logits, cache = run_with_cache(model, tokens)
            return metric(difference(logits[:, -1], right, wrong)), [cache["z", i] for i in range(model.cfg.n_layers)]

        (high, goal), (low, own) = run(clean), run(corrupted)
        found = torch.autograd.grad(high, goal) if at_clean else torch.autograd.grad(low, own)
        rows = [(entry or product)(a - b, g) for a, b, g in zip(goal, own, found, strict=True)]
        return torch.stack(rows) / divide(high, low)

    return attribution


def by_backward(model, clean, corrupted, right, wrong):
    """Right: detached leaves put in place by hooks, and backward() into those."""
    with torch.no_grad():
        clean_logits, goal = run_with_cache(model, clean)
    leaves = {}

    def leaf(z, hook):
        leaves[hook.name] = z.detach().requires_grad_() if not z.requires_grad else z
        leaves[hook.name].retain_grad()
        return leaves[hook.name]

    with hooked(model, [(lambda name: name.endswith("hook_z"), leaf)]):
        low = difference(model(corrupted)[:, -1], right, wrong).mean()
    low.backward()
    high = difference(clean_logits[:, -1], right, wrong).mean()
    rows = [torch.einsum("bphe,bphe->h", goal[name] - z, z.grad) for name, z in leaves.items()]
    return (torch.stack(rows) / (high - low)).tolist()


def by_module(model, clean, corrupted, right, wrong):
    return Patching(model, clean, corrupted, logit_difference(right, wrong)).attribution("z").values


def wants_gradients(model, clean, corrupted, right, wrong):
    model.requires_grad_(True)
    return gradients()(model, clean, corrupted, right, wrong)


def restores_requires_grad(model, clean, corrupted, right, wrong):
    """Right, if not nice: afterwards the parameters are what they were."""
    model.requires_grad_(True)
    try:
        return gradients()(model, clean, corrupted, right, wrong).detach().numpy()
    finally:
        model.requires_grad_(False)


def grads_left(model, clean, corrupted, right, wrong):
    model.requires_grad_(True)
    model(corrupted)[:, -1].sum().backward()
    model.requires_grad_(False)
    return gradients()(model, clean, corrupted, right, wrong)


ATTRIBUTION = Answers(
    right=[gradients(), by_backward, by_module, restores_requires_grad],
    wrong=[
        (gradients(at_clean=True), "at the clean run"),
        (gradients(lambda x, g: -(x * g).sum(dim=(0, 1, 3))), "the sign"),
        (gradients(divide=lambda high, low: low - high), "the sign"),
        (gradients(divide=lambda high, low: 1), "not divided"),
        (gradients(divide=lambda high, low: high), "divided by the clean metric alone"),
        (gradients(lambda x, g: (x * g).sum(dim=(1, 3)).mean(0)), "divided by the number of rows twice"),
        (gradients(lambda x, g: (x * g).sum(dim=(0, 3)).mean(0)), "a random model"),
        (gradients(lambda x, g: (x * g).mean(1).sum(dim=(0, 2))), "a random model"),
        (gradients(lambda x, g: (x * g).mean(dim=(0, 1, 3))), "mean over rows, positions and dimensions"),
        (gradients(lambda x, g: (x.sum(3) * g.sum(3)).sum(dim=(0, 1))), "summed over d_head before multiplying"),
        (gradients(lambda x, g: (x.mean(0) * g.sum(0)).sum(dim=(0, 2))), "averaged over rows before multiplying"),
        (gradients(lambda x, g: (x * g).abs().sum(dim=(0, 1, 3))), "absolute values were summed"),
        (gradients(lambda x, g: (x * g).sum(dim=(0, 1, 3)).abs()), "these are absolute values"),
        (gradients(lambda x, g: (x * g)[:, -1].sum(dim=(0, 2))), "only the last position"),
        (gradients(lambda x, g: g.sum(dim=(0, 1, 3))), "this is the gradient alone"),
        (sweep(), "exact values of 8.3"),
        (lambda *args: gradients()(*args).T, "transposed"),
        (wants_gradients, "requires_grad was changed"),
        (grads_left, "torch.autograd.grad hands back"),
    ],
)

# 8.5 together


def hooks_for(change=lambda heads, cfg: heads, swap=False, late=False, position=slice(None)):
    def together(model, clean, corrupted, heads):
        clean, corrupted = (corrupted, clean) if swap else (clean, corrupted)
        _, cache = run_with_cache(model, clean)
        hooks = []
        for layer, head in change(heads, model.cfg):

            def patch(z, hook, own=head):
                h = head if late else own  # noqa: B023
                z[:, position, h] = cache[hook.name][:, position, h]

            hooks.append((f"blocks.{layer}.attn.hook_z", patch))
        with hooked(model, hooks):
            return model(corrupted)

    return together


def sorted_apart(heads):
    return zip(sorted(i for i, _ in heads), [h for _, h in heads], strict=True)


def by_layer(model, clean, corrupted, heads):
    _, cache = run_with_cache(model, clean)

    def patch(z, hook):
        chosen = [head for layer, head in heads if layer == hook.layer()]
        z[:, :, chosen] = cache[hook.name][:, :, chosen]

    with hooked(model, [(lambda name: name.endswith("hook_z"), patch)]):
        return model(corrupted)


def by_partial(model, clean, corrupted, heads):
    _, cache = run_with_cache(model, clean)

    def patch(z, hook, head):
        mask = (torch.arange(z.shape[2]) == head)[:, None]
        return torch.where(mask, cache[hook.name], z)

    with hooked(model, [(f"blocks.{i}.attn.hook_z", functools.partial(patch, head=h)) for i, h in heads]):
        return model(corrupted).detach().double().numpy()


def both_late(model, clean, corrupted, heads):
    _, cache = run_with_cache(model, clean)
    hooks = []
    for layer, head in heads:
        name = f"blocks.{layer}.attn.hook_z"

        def patch(z, hook):
            z[:, :, head] = cache[name][:, :, head]  # noqa: B023

        hooks.append((name, patch))
    with hooked(model, hooks):
        return model(corrupted)


def one_after_the_other(model, clean, corrupted, heads):
    logits = model(corrupted)
    for pair in heads:
        logits = hooks_for()(model, clean, corrupted, [pair])
    return logits


def unset_when_empty(model, clean, corrupted, heads):
    for _pair in heads:
        logits = hooks_for()(model, clean, corrupted, heads)
    return logits


def nested_left(model, clean, corrupted, heads):
    _, cache = run_with_cache(model, clean)
    for layer, head in heads:
        name = f"blocks.{layer}.attn.hook_z"
        model.attached.setdefault(name, []).append(
            lambda z, hook, head=head: z.index_copy(2, torch.tensor([head]), cache[hook.name][:, :, [head]])
        )
    return model(corrupted)


TOGETHER = Answers(
    right=[hooks_for(), by_layer, by_partial],
    wrong=[
        (hooks_for(late=True), "the function with the bug"),
        (both_late, "heads"),
        (one_after_the_other, "only the last head"),
        (hooks_for(lambda heads, cfg: heads[:1]), "only the first head"),
        (hooks_for(lambda heads, cfg: dict(heads).items()), "a layer may have several"),
        (hooks_for(lambda heads, cfg: dict(reversed(heads)).items()), "a layer may have several"),
        (hooks_for(lambda heads, cfg: [(i, h) for i, _ in heads for h in range(cfg.n_heads)]), "all heads of these"),
        (hooks_for(lambda heads, cfg: itertools.product({i for i, _ in heads}, {h for _, h in heads})), "heads"),
        (hooks_for(lambda heads, cfg: sorted_apart(heads)), "with its own layer"),
        (hooks_for(lambda heads, cfg: []), "nothing was changed"),
        (hooks_for(swap=True), "noising"),
        (hooks_for(position=-1), "only the last position"),
        (unset_when_empty, "UnboundLocalError"),
        (nested_left, "a hook stays attached"),
        (lambda model, clean, corrupted, heads: model(clean), "clean run's"),
    ],
)

# 8.6 vote


def gate(biases, out=(1.0, -1.0), weight=1.0):
    def vote(inputs, needed):
        b = torch.tensor([float(b) for b in biases(inputs, needed)])
        return {"W_in": torch.full((inputs, 2), weight), "b_in": b, "W_out": torch.tensor(out)}

    return vote


def in_numpy(inputs, needed):
    return {"W_in": np.ones((inputs, 2), dtype=int), "b_in": [1 - needed, -needed], "W_out": [1, -1]}


def steep(inputs, needed):
    """Both neurons ten times as steep, in another order."""
    W_in = 10 * torch.ones(inputs, 2).double()
    return {"W_in": W_in, "b_in": torch.tensor([4.0, 5.0]) - 10 * needed + 0.0, "W_out": torch.tensor([-1.0, 1.0])}


def from_zeros(inputs, needed):
    """A neuron that counts zeros: 1 - relu(...) needs a constant, which a large bias gives."""
    W_in = torch.stack([-torch.ones(inputs), -torch.ones(inputs)], dim=1)
    return {"W_in": W_in, "b_in": torch.tensor([inputs - needed + 1.0, inputs - needed + 0.0]), "W_out": [0.0, 0.0]}


VOTE = Answers(
    right=[gate(lambda n, k: (1 - k, -k)), in_numpy, gate(lambda n, k: (2 - 2 * k, 1 - 2 * k), weight=2.0), steep],
    wrong=[
        (gate(lambda n, k: (1 - n, -n)), "this is an AND"),
        (gate(lambda n, k: (0, -1)), "this is an OR"),
        (gate(lambda n, k: (1 - k, -n)), "caps"),
        (gate(lambda n, k: (-k, -k - 1)), "off by one"),
        (gate(lambda n, k: (2 - k, 1 - k)), "off by one"),
        (gate(lambda n, k: (1 - k, -k), (1.0, 1.0)), "the second neuron adds"),
        (gate(lambda n, k: (1 - k, -k), (-1.0, 1.0)), "a vote of"),
        (gate(lambda n, k: (-k, -k)), "always 0"),
        (gate(lambda n, k: (0, -n)), "the number of ones"),
        (gate(lambda n, k: (1 - k, -k), weight=0.5), "a vote of"),
        (from_zeros, "always 0"),
        (lambda n, k: {"W_in": torch.ones(2, n), "b_in": torch.zeros(2), "W_out": torch.ones(2)}, "wrong shape"),
        (lambda n, k: (torch.ones(n, 2), torch.zeros(2), torch.ones(2)), "a dictionary with"),
        (
            lambda n, k: {**in_numpy(n, k), "W_in": torch.tensor([[1.0, 1.0]] + [[0.5, 1.0]] * (n - 1))},
            "which bits are 1",
        ),
    ],
)

# 8.7 hides


def hidden(head, cue, answer):
    return {"head": head, "other_cue": cue, "other_answer": answer}


HIDES = Answers(
    right=[
        hidden(5, 0.98, 0.0),
        hidden(torch.tensor(5), torch.tensor(0.9181), np.float32(-1e-5)),
        hidden(5, 0.989, 1e-6),
        {"other_answer": 0, "other_cue": 0.91, "head": np.int64(5)},
    ],
    wrong=[
        (hidden(5, 0.0, 0.98), "exchanged"),
        (hidden(5, 0.5049, 0.0), "seed 0"),
        (hidden(3, 0.078, 0.0), "layer 1"),
        (hidden(1, 0.98, 0.0), "L0H1 restores"),
        (hidden(0, 0.002, 0.0), "argmax over heads"),
        (hidden(5, 0.98, 0.98), "from other_answer"),
        (hidden(5, 0.02, 0.0), "denoise"),
        (hidden(5, 0.98, 1.0), "denoise"),
        (hidden(5, 0.96, 0.0), "noising"),
        (hidden(5, 0.92, 0.0), "logit difference"),
        (hidden(6, 0.98, 0.0), "from 0 to 5"),
        (hidden(5, 98.0, 0.0), "shares go from"),
        (hidden(5, None, 0.0), "is None"),
        (hidden(5, "0.98", 0.0), "other_cue"),
        ({"head": 5, "other_cue": 0.98}, "a dictionary with"),
    ],
)

# 8.8 half


def halves(difference, chance):
    return {"logit_difference": difference, "probability": chance}


HALF = Answers(
    right=[
        halves(0.508, 0.085),
        halves(torch.tensor(0.58), np.float64(0.13)),
        {"probability": 0.1, "logit_difference": 0.51},
    ],
    wrong=[
        (halves(0.085, 0.508), "exchanged"),
        (halves(0.499, 0.151), "position 2"),
        (halves(0.50, 0.15), "position 2"),
        (halves(1.0, 1.0), "both names"),
        (halves(0.499, 0.915), "probability"),
        (halves(0.508, 0.508), "the same metric twice"),
        (halves(0.085, 0.085), "the same metric twice"),
        (halves(-3.2, 0.085), "not on the scale"),
        (halves(0.0, 0.0), "position 0"),
        (halves(50.8, 8.5), "not on the scale"),
        (halves(None, 0.1), "is None"),
    ],
)

# 8.9 statements

TRUTH = {"a": False, "b": True, "c": True, "d": True, "e": False, "f": True, "g": True, "h": False, "i": False}


STATEMENTS = Answers(
    right=[
        TRUTH,
        {name: str(value).lower() for name, value in TRUTH.items()},
        {name: np.bool_(value) for name, value in TRUTH.items()},
        {name: torch.tensor(value) for name, value in TRUTH.items()},
    ],
    wrong=[
        *(({**TRUTH, name: not value}, f"statement {name}") for name, value in TRUTH.items()),
        ({**TRUTH, "a": True}, "another head might have done as well"),
        ({**TRUTH, "e": True}, "vote of four out of six"),
        ({**TRUTH, "i": True}, "pull back"),
        ({**TRUTH, "a": "maybe"}, "no such answer"),
        ({name: value for name, value in TRUTH.items() if name != "i"}, "one judgement for each"),
    ],
)

BANK = {
    "patched_logits": PATCHED_LOGITS,
    "restored": RESTORED,
    "head_sweep": HEAD_SWEEP,
    "attribution": ATTRIBUTION,
    "together": TOGETHER,
    "vote": VOTE,
    "hides": HIDES,
    "half": HALF,
    "statements": STATEMENTS,
}
