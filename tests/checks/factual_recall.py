"""Chapter 10's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import copy

import numpy as np
import torch

from interp_edu.hooks import hooked, run_with_cache
from tests.checks.bank import Answers

# 10.1 average_indirect_effect


def tracing(half, mean=lambda effects, corrupted, restored: effects.mean(dim=0)):
    """The mean effect, and half a width made by `half(effects, corrupted, restored)`."""

    def average_indirect_effect(corrupted, restored):
        given = restored - corrupted[:, None, None], corrupted, restored
        return mean(*given), half(*given)

    return average_indirect_effect


def interval(effects, *_):
    return 1.96 * effects.std(dim=0) / len(effects) ** 0.5


def widths_of_both(effects, corrupted, restored):
    return (interval(restored) ** 2 + interval(corrupted) ** 2) ** 0.5


def in_numpy(corrupted, restored):
    effects = restored.double().numpy() - corrupted.double().numpy()[:, None, None]
    return [effects.mean(0), 1.96 * effects.std(0, ddof=1) / np.sqrt(len(effects))]


def stacked(corrupted, restored):
    """Right: both in one tensor, prompt by prompt."""
    effects = torch.stack([row - p for p, row in zip(corrupted, restored, strict=True)])
    mean = sum(effects) / len(effects)
    s = (sum((row - mean) ** 2 for row in effects) / (len(effects) - 1)) ** 0.5
    return torch.stack([mean, 1.96 * s / len(effects) ** 0.5])


def along_positions(corrupted, restored):
    effects = restored - (corrupted if len(corrupted) == restored.shape[2] else corrupted[:, None, None])
    return effects.mean(dim=0), interval(effects)


AVERAGE_INDIRECT_EFFECT = Answers(
    right=[tracing(interval), in_numpy, stacked],
    wrong=[
        (tracing(lambda effects, corrupted, restored: interval(restored)), "the interval of `restored` alone"),
        (tracing(widths_of_both), "two separate means"),
        (tracing(lambda effects, *_: 1.96 * effects.std(0, correction=0) / len(effects) ** 0.5), "s was taken with n"),
        (tracing(lambda effects, *_: 1.96 * effects.std(0)), "not divided by the root"),
        (tracing(lambda effects, *_: 1.96 * effects.std(0) / len(effects)), "not by its square root"),
        (tracing(lambda effects, *_: 1.96 * effects.var(0) / len(effects) ** 0.5), "s squared"),
        (tracing(lambda *given: 2 * interval(*given)), "the full width"),
        (tracing(lambda *given: interval(*given) / 1.96), "1.96 is forgotten"),
        (tracing(lambda effects, *_: effects.mean(0) + interval(effects)), "the interval's upper end"),
        (tracing(interval, lambda effects, *_: -effects.mean(0)), "corrupted minus restored"),
        (tracing(interval, lambda effects, corrupted, restored: restored.mean(0)), "was not taken away"),
        (tracing(interval, lambda effects, *_: effects.abs().mean(0)), "the sign is lost"),
        (
            tracing(lambda *given: interval(*given).mean(0), lambda effects, *_: effects.mean((0, 1))),
            "mean over layers",
        ),
        (lambda corrupted, restored: in_numpy(corrupted, restored)[::-1], "the effect comes first"),
        (along_positions, "the axis of positions"),
        (lambda corrupted, restored: in_numpy(corrupted, restored)[0], "two tensors"),
    ],
)

# 10.2 transplanted


def here(x, source, position):
    x[:, position] = source[:, position]


def moving(put=here, *, swap=False, end=lambda logits, position: logits[:, -1]):
    def transplanted(model, recipients, donors, name, position):
        recipients, donors = (donors, recipients) if swap else (recipients, donors)
        _, cache = run_with_cache(model, donors, [name])
        with hooked(model, [(name, lambda x, hook: put(x, cache[name], position))]):
            return end(model(recipients), position)

    return transplanted


def by_mask(x, source, position):
    mask = torch.arange(x.shape[1]) == position
    return torch.where(mask.view(1, -1, *[1] * (x.ndim - 2)), source, x)


def row_by_row(model, recipients, donors, name, position):
    one = moving(by_mask)
    rows = [one(model, a[None], b[None], name, position) for a, b in zip(recipients, donors, strict=True)]
    return torch.cat(rows).double().numpy()


def after(x, source, position):
    x[:, (position + 1) % x.shape[1]] = source[:, (position + 1) % x.shape[1]]


def added(x, source, position):
    x[:, position] += source[:, position]


def first_donor(x, source, position):
    x[:, position] = source[0, position]


def rebound(x, source, position):
    x = x.clone()
    here(x, source, position)


def left_behind(model, recipients, donors, name, position):
    _, cache = run_with_cache(model, donors, [name])
    model.attached.setdefault(name, []).append(lambda x, hook: here(x, cache[name], position))
    return model(recipients)[:, -1]


def retrained(model, recipients, donors, name, position):
    logits = moving()(model, recipients, donors, name, position)
    model.unembed.b_U.data.add_(1)
    return logits


TRANSPLANTED = Answers(
    right=[moving(), row_by_row],
    wrong=[
        (moving(swap=True), "exchanged"),
        (moving(lambda x, source, position: source), "all positions were moved"),
        (moving(after), "off by one"),
        (moving(added), "was added"),
        (moving(first_donor), "the first donor's"),
        (moving(rebound), "nothing was changed"),
        (moving(end=lambda logits, position: logits), "logits at all positions"),
        (moving(end=lambda logits, position: logits[:, position]), "the logits at `position`"),
        (moving(end=lambda logits, position: logits[-1]), "the last row's logits"),
        (left_behind, "a hook stays attached"),
        (retrained, "leaves the weights alone"),
        (lambda model, recipients, donors, *_: model(donors)[:, -1], "the donors' own"),
    ],
)

# 10.3 edited


def edit(direction=torch.linalg.solve, scale=lambda key, u, moment: key @ u, *, turned=False, sign=1):
    """W plus an outer product: `direction(moment, key)` with the change, divided by `scale`."""

    def edited(W, key, change, moment):
        u = direction(moment, key)
        outer = torch.outer(change, u) if turned else torch.outer(u, change)
        return W + sign * outer / scale(key, u, moment)

    return edited


def by_inverse(W, key, change, moment):
    """Right: in numpy, with columns."""
    W, key, change, moment = (x.double().numpy() for x in (W, key, change, moment))
    u = np.linalg.inv(moment) @ key[:, None]
    return W + u * change / (key[None] @ u)


def by_loops(W, key, change, moment):
    u = torch.linalg.solve(moment.double(), key.double())
    u = u / sum(a * b for a, b in zip(key, u, strict=True))
    return torch.stack([row + a * change for row, a in zip(W, u, strict=True)]).tolist()


def in_place(W, key, change, moment):
    u = torch.linalg.solve(moment, key)
    W += torch.outer(u, change) / (key @ u)
    return W


EDITED = Answers(
    right=[edit(), by_inverse, by_loops],
    wrong=[
        (edit(lambda moment, key: key), "the identity stands for C"),
        (edit(lambda moment, key: moment @ key), "not its inverse"),
        (edit(scale=lambda *_: 1), "the denominator is missing"),
        (edit(scale=lambda key, u, moment: key @ key), "the key's square"),
        (edit(scale=lambda key, u, moment: u.norm()), "a length"),
        (edit(lambda moment, key: key, lambda *_: 1), "neither C nor"),
        (edit(turned=True), "transposed"),
        (edit(sign=-1), "the wrong sign"),
        (in_place, "W += ..."),
        (lambda W, key, change, moment: edit()(W, key, change - key @ W, moment), "took the old output's place"),
        (lambda W, *rest: edit()(W, *rest) - W, "the update alone"),
        (lambda W, *rest: edit()(W, *rest)[:, :1], "wrong shape"),
    ],
)

# 10.4 store


def wire(weight=1.0, bias=-1.0, last=lambda last, n_first, n_last: n_first + last, values=lambda rows: rows):
    def store(facts, n_first, n_last):
        W_in = torch.zeros(n_first + n_last, len(facts))
        for neuron, (first, second) in enumerate(facts):
            W_in[first, neuron] = weight
            W_in[last(second, n_first, n_last), neuron] = weight
        b_in = torch.full((len(facts),), float(bias))
        return {"W_in": W_in, "b_in": b_in, "W_out": values(torch.stack(list(facts.values())))}

    return store


def uneven(facts, n_first, n_last):
    """Right: in numpy, in another order, with two weights that differ and a strength of its own for every neuron."""
    pairs = sorted(facts)
    W_in = np.zeros((n_first + n_last, len(pairs)))
    for neuron, (first, last) in enumerate(pairs):
        W_in[first, neuron], W_in[n_first + last, neuron] = 3 + neuron, 2 + neuron
        W_in[:n_first, neuron] -= 0.5
    b_in = [-(3.0 + neuron) for neuron in range(len(pairs))]
    strength = [2 * n + 5 - 0.5 - (3 + n) for n in range(len(pairs))]
    values = np.stack([facts[p].double().numpy() / s for p, s in zip(pairs, strength, strict=True)])
    return {"W_out": values, "b_in": b_in, "W_in": W_in}


def every_pair(facts, n_first, n_last):
    zero = 0 * next(iter(facts.values()))
    return wire()({(i, j): facts.get((i, j), zero) for i in range(n_first) for j in range(n_last)}, n_first, n_last)


STORE = Answers(
    right=[wire(), wire(2, -3), uneven],
    wrong=[
        (wire(bias=0), "there is no bias"),
        (wire(bias=-2), "silent always"),
        (wire(0.5, 0), "a sum, not an AND"),
        (wire(bias=-0.5), "the bias is too small"),
        (wire(bias=1), "the wrong sign"),
        (wire(2, -2), "too strongly"),
        (wire(last=lambda last, n_first, n_last: last), "is n_first + last"),
        (wire(last=lambda last, n_first, n_last: n_last + last), "IndexError"),
        (wire(values=lambda rows: rows.T.contiguous()), "transposed"),
        (wire(values=lambda rows: rows.flip(0)), "another order"),
        (every_pair, "a neuron for each stored fact"),
        (lambda facts, *sizes: wire()(dict(list(facts.items())[1:] or facts), *sizes), "a neuron for each stored fact"),
        (lambda *given: tuple(wire()(*given).values()), "a dictionary with"),
    ],
)

# 10.5 effect


def effects(draws="once", *, restore=here, silent=False, turned=False, clean=False, of=lambda x: x.softmax(-1)):
    """The indirect effect; `draws` says where the second run's noise comes from."""

    def effect(model, tokens, subject, noise, name, position, answer, seed):
        generator = torch.Generator().manual_seed(seed)
        first = noise(generator)
        second = {"once": first, "again": noise(generator)}.get(draws)
        second = noise(torch.Generator().manual_seed(seed)) if second is None else second

        def corrupt(by):
            def hook(x, hook):
                x[:, subject] += by

            return hook

        _, cache = run_with_cache(model, tokens)
        if clean:
            with hooked(model, [("hook_embed", corrupt(first))]):
                _, cache = run_with_cache(model, tokens)
        with hooked(model, [("hook_embed", corrupt(first))]):
            low = of(model(tokens)[:, -1])[:, answer].mean()
        put = (name, lambda x, hook: restore(x, cache[name], position))
        with hooked(model, [put] if silent else [("hook_embed", corrupt(second)), put]):
            high = of(model(tokens)[:, -1])[:, answer].mean()
        return (low - high).item() if turned else high - low

    return effect


def in_one_batch(model, tokens, subject, noise, name, position, answer, seed):
    """Right: both runs side by side, in float64."""
    model, n = copy.deepcopy(model).double(), len(tokens)
    drawn = noise(torch.Generator().manual_seed(seed)).double()
    clean = run_with_cache(model, tokens, name)[1][name]

    def corrupt(x, hook):
        x[:, subject] += drawn.repeat(2, 1, 1)

    def put(x, hook):
        x[n:, position] = clean[:, position]

    with hooked(model, [("hook_embed", corrupt), (name, put)]):
        chances = model(tokens.repeat(2, 1))[:, -1].softmax(dim=-1)[:, answer]
    return float(chances[n:].mean() - chances[:n].mean())


EFFECT = Answers(
    right=[effects(), effects("another generator"), in_one_batch],
    wrong=[
        (effects("again"), "noise is drawn again"),
        (effects(silent=True), "the second run has no noise"),
        (effects(clean=True), "nothing was restored"),
        (effects(turned=True), "turned round"),
        (effects(restore=lambda x, source, position: source), "all positions were restored"),
        (effects(of=lambda x: x), "take probabilities"),
        (lambda *given: effects()(*given[:-1], 0), "from seed 0"),
        (lambda *given: None, "None"),
    ],
)

# 10.6 moved


def moves(recall=0.891566, plain=0.120482):
    return {"recall": recall, "recall-plain": plain}


MOVED = Answers(
    right=[
        moves(),
        moves(torch.tensor(0.784810), np.float64(0.088608)),
        {"recall-plain": 0.12, "recall": np.float32(0.89)},
    ],
    wrong=[
        (moves(0.120482, 0.891566), "exchanged"),
        (moves(0.120482, 0.253012), "recipients and donors are exchanged"),
        (moves(0.0, 0.216867), "the first name"),
        (moves(0.0, 0.0), "nothing is moved so"),
        (moves(0.939759, 0.0), "of seed 0"),
        (moves(1.0, 0.084337), "of seed 2"),
        (moves(0.036145, 0.240964), "keeps its own answer"),
        (moves(0.894737, 0.126316), "share a name with the recipient, or the answer"),
        (moves(0.890110, 0.120879), "share a name"),
        (moves(0.965909, 0.852273), "by the hint"),
        (moves(0.108434, 0.879518), "what is not moved"),
        (moves(0.879518, 0.0), "the attention's output"),
        (moves(1.0, 0.120482), "the whole stream"),
        (moves(0.060241, 0.060241), "the course model"),
        (moves(0.891566, 0.891566), '"recall" twice'),
        (moves(89.2, 12.0), "in percent"),
        (moves(None), "is None"),
        ({"recall": 0.891566}, "a dictionary with"),
    ],
)

# 10.7 both


def found(traced=0.0059038, edited=1.0):
    return {"traced": traced, "edited": edited}


BOTH = Answers(
    right=[
        found(),
        found(torch.tensor(0.0212), np.float64(1.0)),
        found(0.0039, 1),
        found(np.float32(0.0258), 0.875),
        {"edited": torch.tensor(1.0), "traced": 0.0237},
    ],
    wrong=[
        (found(1.0, 0.0059038), "exchanged"),
        (found(0.0359420), "this is `restored`"),
        (found(0.0300382), "in the corrupted run"),
        (found(-0.0059038), "the sign"),
        (found(0.0151611), "resid_pre"),
        (found(0.0175733), "attn_out"),
        (found(0.0016509), "that is END"),
        (found(0.0105816), "that is the first name"),
        (found(0.0043806), "that is layer 1"),
        (found(0.0034202), "seed 1"),
        (found(0.97), "too much"),
        (found(edited=0.5), "one upon another"),
        (found(edited=0.75), "at layer 0"),
        (found(edited=0.0), "rome returns a new one"),
        (found(edited=100.0), "percent"),
        (found(edited=8), "percent"),
        (found(None), "is None"),
        ({"traced": 0.0059}, "a dictionary with"),
    ],
)

# 10.8 statements

TRUTH = {"a": True, "b": False, "c": True, "d": False, "e": False, "f": True, "g": False, "h": True, "i": False}


STATEMENTS = Answers(
    right=[
        TRUTH,
        {name: str(value).lower() for name, value in TRUTH.items()},
        {name: np.bool_(value) for name, value in TRUTH.items()},
    ],
    wrong=[
        *(({**TRUTH, name: not value}, f"statement {name}") for name, value in TRUTH.items()),
        ({**TRUTH, "d": True}, "where nothing was traced"),
        ({**TRUTH, "a": "maybe"}, "no such answer"),
        ({name: value for name, value in TRUTH.items() if name != "i"}, "one judgement for each"),
    ],
)

BANK = {
    "average_indirect_effect": AVERAGE_INDIRECT_EFFECT,
    "transplanted": TRANSPLANTED,
    "edited": EDITED,
    "store": STORE,
    "effect": EFFECT,
    "moved": MOVED,
    "both": BOTH,
    "statements": STATEMENTS,
}
