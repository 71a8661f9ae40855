"""Chapter 9's wrong-answer bank: what learners write, and the words that the feedback must contain."""

import functools
import itertools

import numpy as np
import torch

from interp_edu.hooks import hooked, run_with_cache
from tests.checks.bank import Answers

# 9.1 roles


def stated(build, number=lambda x: x):
    """A dictionary from each row's three places, its tokens and its order; `build` gives one row's IO, S1 and S2."""

    def roles(tokens, names):
        rows = []
        for row in tokens.tolist():
            where = [i for i, token in enumerate(row) if token in names]
            rows.append(build(row, *where))
        columns = zip(*rows, strict=True)
        return {name: number(torch.tensor(column)) for name, column in zip(("IO", "S1", "S2"), columns, strict=True)}

    return roles


def right_row(row, a, b, c):
    return (b, a, c) if row[a] == row[c] else (a, b, c)


def by_counting(tokens, names):
    """Right, wherever the repeated name stands: the name that is there once, by counting."""
    found = {"IO": [], "S1": [], "S2": []}
    for row in np.asarray(tokens):
        for name in set(row.tolist()) & set(names):
            at = np.flatnonzero(row == name)
            for role, place in zip(("S1", "S2") if len(at) == 2 else ("IO",), at, strict=True):
                found[role].append(place)
    return found


def by_matrix(tokens, names):
    mask = torch.isin(tokens, torch.tensor(names))
    same = (tokens[:, :, None] == tokens[:, None]) & mask[:, :, None] & mask[:, None]
    twice = same.sum(2) == 2
    first, last = twice.int().argmax(1), tokens.shape[1] - 1 - twice.flip(1).int().argmax(1)
    return {"IO": (mask & ~twice).int().argmax(1).int(), "S1": first.to(torch.int16), "S2": last.numpy()}


def one_order(tokens, names):
    where = torch.isin(tokens, torch.tensor(names)).nonzero()[:, 1].view(-1, 3)
    order = [1, 0, 2] if tokens[0, where[0, 0]] == tokens[0, where[0, 2]] else [0, 1, 2]
    return dict(zip(("IO", "S1", "S2"), where[:, order].T, strict=True))


def from_first_row(tokens, names):
    found = stated(right_row)(tokens[:1], names)
    return {name: value.repeat(len(tokens)) for name, value in found.items()}


def any_repeat(tokens, names):
    """Takes the first word that comes again, name or not."""
    rows = []
    for row in tokens.tolist():
        s1 = next(i for i, token in enumerate(row) if row.count(token) > 1)
        io = next(i for i, token in enumerate(row) if token in names and token != row[s1])
        rows.append((io, s1, row.index(row[s1], s1 + 1)))
    return dict(zip(("IO", "S1", "S2"), torch.tensor(rows).T, strict=True))


ROLES = Answers(
    right=[stated(right_row), by_counting, by_matrix, stated(right_row, lambda x: x.to(torch.int32).tolist())],
    wrong=[
        (stated(lambda row, a, b, c: (a, b, c) if row[a] == row[c] else (b, a, c)), "IO and S1 are exchanged"),
        (stated(lambda row, a, b, c: (b, a, c)), "taken for S1 always"),
        (stated(lambda row, a, b, c: (a, b, c)), "taken for IO always"),
        (stated(lambda row, *at: (*right_row(row, *at)[:2], sum(t > 0 for t in row) - 1)), "not padding"),
        (stated(lambda row, *at: (*right_row(row, *at)[:2], len(row) - 1)), "S2"),
        (stated(lambda row, *at: [row[i] for i in right_row(row, *at)]), "these are the names"),
        (stated(lambda row, *at: [at.index(i) for i in right_row(row, *at)]), "number the names"),
        (stated(lambda row, *at: [i + 1 for i in right_row(row, *at)]), "counted from 0"),
        (stated(lambda row, *at: [i - 1 for i in right_row(row, *at)]), "one too small"),
        (stated(lambda row, *at: np.array(right_row(row, *at))[[0, 1, 1]].tolist()), "S2 is where the name"),
        (stated(lambda row, *at: np.array(right_row(row, *at))[[0, 2, 1]].tolist()), "S1 and S2 are exchanged"),
        (one_order, "taken for S1 always"),
        (from_first_row, "first row's"),
        (any_repeat, "oles"),
        (stated(right_row, lambda x: x.float()), "whole numbers"),
        (stated(right_row, lambda x: x[:, None]), "take [:, 0]"),
        (stated(right_row, lambda x: x[0]), "wrong shape"),
        (lambda *args: {"IO": stated(right_row)(*args)["IO"]}, "a dictionary with"),
        (lambda *args: None, "a dictionary with"),
    ],
)

# 9.2 direct and 9.6 path


def put_head(z, source, head):
    z[:, :, head] = source[:, :, head]


def freezing(
    put=put_head, layers=lambda layer, n: range(n), *, swap=False, to=0, of=1, on=0, where=None, order=1, end=None
):
    """Path patching, with a slip or none: frozen `to` which run, the sender `of` which, the last run `on` which."""

    def direct(model, clean, corrupted, layer, head):
        prompts = (corrupted, clean) if swap else (clean, corrupted)
        caches = [run_with_cache(model, tokens)[1] for tokens in prompts]

        def freeze(z, hook):
            if order == -1 and hook.layer() == layer:
                put(z, caches[of][hook.name], head)
            if hook.layer() in layers(layer, model.cfg.n_layers):
                z[:] = caches[to][hook.name]
            if order == 1 and hook.layer() == (layer if where is None else where(layer, model.cfg)):
                put(z, caches[of][hook.name], head)

        hooks = [(lambda name: name.endswith("hook_z"), freeze)]
        if end is not None:
            hooks.append((lambda name: name.endswith(end), lambda x, hook: caches[0][hook.name]))
        with hooked(model, hooks):
            return model(prompts[on])

    return direct


def later_writes_frozen(model, clean, corrupted, layer, head):
    """Right: whole attention outputs of other layers are frozen, and the sender's own layer is put together."""
    with torch.no_grad():
        (_, ours), (_, theirs) = (run_with_cache(model, tokens) for tokens in (clean, corrupted))

    def put(x, hook):
        if hook.layer() != layer:
            return ours[hook.name]
        z = [cache["z", layer][:, :, head] for cache in (theirs, ours)]
        return ours[hook.name] + (z[0] - z[1]) @ model.blocks[layer].attn.W_O[head]

    with hooked(model, [(lambda name: name.endswith("attn_out"), put)]):
        return model(clean).detach().double().numpy()


def only_later(model, clean, corrupted, layer, head):
    """Right: earlier heads and those beside the sender are as in the clean run anyway."""
    later = freezing(layers=lambda layer, n: range(layer + 1, n))
    return later(model, clean, corrupted, layer, head)


def hook_left(model, clean, corrupted, layer, head):
    _, ours = run_with_cache(model, clean)
    for i in range(model.cfg.n_layers):
        name = f"blocks.{i}.attn.hook_z"
        model.attached.setdefault(name, []).append(lambda z, hook: ours[hook.name])
    return freezing()(model, clean, corrupted, layer, head)


def change_only(model, clean, corrupted, layer, head):
    return freezing()(model, clean, corrupted, layer, head) - model(clean)


def attributed(model, clean, corrupted, layer, head):
    (logits, ours), (_, theirs) = (run_with_cache(model, tokens) for tokens in (clean, corrupted))
    change = (theirs["z", layer] - ours["z", layer])[:, :, head] @ model.blocks[layer].attn.W_O[head]
    if model.cfg.normalization_type is not None:
        change = (change - change.mean(-1, keepdim=True)) / ours["ln_final.hook_scale"] * model.ln_final.w
    return logits + change @ model.unembed.W_U


def last_position(z, source, head):
    z[:, -1, head] = source[:, -1, head]


def whole(z, source, head):
    z[:] = source


def up_to(layer, n):
    return range(layer + 1)


DIRECT = Answers(
    right=[freezing(), later_writes_frozen, only_later],
    wrong=[
        (freezing(layers=up_to), "the total effect"),
        (freezing(layers=lambda layer, n: range(n - 1)), "heads of the last layer"),
        (freezing(end="mlp_out"), "MLPs are frozen"),
        (freezing(whole), "all heads of the sender's layer"),
        (freezing(last_position), "only the sender's last position"),
        (freezing(order=-1), "after the freezing"),
        (freezing(to=1), "frozen to the corrupted run"),
        (freezing(swap=True), "clean and corrupted are exchanged"),
        (attributed, "this is direct attribution"),
        (change_only, "return the logits"),
        (hook_left, "a hook stays attached"),
    ],
)

PATH = Answers(
    right=[freezing(), only_later, later_writes_frozen],
    wrong=[
        (freezing(layers=up_to), "the total effect"),
        (freezing(layers=lambda layer, n: range(layer)), "the total effect"),
        (freezing(layers=lambda layer, n: range(layer + 2)), "layer"),
        (freezing(layers=lambda layer, n: range(n - 1)), "heads of the last layer"),
        (freezing(swap=True), "clean and corrupted are exchanged"),
        (freezing(end="attn_out"), "nothing was changed"),
    ],
)

# 9.3 through


def travelling(
    send=None, put=put_head, *, side=lambda s: s, frozen=False, sender=lambda s: s, receiver=lambda r, s: r[1], on=0
):
    """Path patching to a receiver; `send` makes the logits of the first run, from which its input is recorded."""

    def through(model, clean, corrupted, sent, received):
        sent = sender(sent)
        layer, head, which = received[0], receiver(received, sent), side(received[2])
        names = [f"blocks.{layer}.attn.hook_{s}" for s in which]
        heard = {}
        _, ours = run_with_cache(model, clean)

        def keep(x, hook):
            heard[hook.name] = x.clone()

        with hooked(model, [(names, keep)]):
            (send or freezing())(model, clean, corrupted, *sent)
        # of several runs the last one stands, which is that with the hooks

        def change(x, hook):
            put(x, heard[hook.name], head)

        def freeze(z, hook):
            mine = z[:, :, head].clone()
            z[:] = ours[hook.name]
            if hook.layer() == layer:
                z[:, :, head] = mine

        hooks = [(names, change)]
        if frozen:
            hooks.append((lambda name: name.endswith("hook_z"), freeze))
        with hooked(model, hooks):
            return model((clean, corrupted)[on])

    return through


def in_halves(model, clean, corrupted, sender, receiver):
    """Right: the last run starts at the receiver's layer, from the clean stream."""
    (_, ours), (_, theirs) = (run_with_cache(model, tokens) for tokens in (clean, corrupted))
    layer, head, side = receiver

    def put(z, hook):
        new = ours[hook.name].clone()
        if hook.layer() == sender[0]:
            new[:, :, sender[1]] = theirs[hook.name][:, :, sender[1]]
        return new

    name = f"blocks.{layer}.attn.hook_{side}"
    with hooked(model, [(f"blocks.{i}.attn.hook_z", put) for i in range(layer)]):
        _, heard = run_with_cache(model, clean, name, stop_at_layer=layer + 1)
    mask = torch.arange(model.cfg.n_heads)[:, None] == head
    with hooked(model, [(name, lambda x, hook: torch.where(mask, heard[name], x))]):
        return model(ours["resid_pre", layer], start_at_layer=layer).detach().numpy()


def corrupted_run(model, clean, corrupted, layer, head):
    return model(corrupted)


def sender_forgotten(model, clean, corrupted, sender, receiver):
    return freezing(layers=up_to)(model, clean, corrupted, *sender)


def receiver_forgotten(model, clean, corrupted, sender, receiver):
    return freezing()(model, clean, corrupted, *sender)


THROUGH = Answers(
    right=[travelling(), in_halves],
    wrong=[
        (travelling(freezing(layers=up_to)), "nothing is frozen while the message travels"),
        (travelling(put=whole), "all heads of the receiver's layer"),
        (travelling(frozen=True), "frozen in the last run, too"),
        (travelling(side=lambda s: "kqv"["qkv".index(s)]), "the receiver's third"),
        (travelling(side=lambda s: "qkv"), "put into q, k and v"),
        (travelling(put=last_position), "only the last position"),
        (travelling(corrupted_run), "which all senders have changed"),
        (sender_forgotten, "the sender's total effect"),
        (receiver_forgotten, "the logits of 9.2"),
    ],
)

# 9.4 only


def keeping(chosen=lambda kept, cfg: kept, mean=lambda means, z, layer: means[layer], *, mlps=True, full=False):
    def only(model, tokens, kept, means):
        _, cache = run_with_cache(model, tokens)
        heads = list(chosen(kept, model.cfg))

        def replace(z, hook):
            new = mean(means, z, hook.layer()).expand_as(z).clone()
            for layer, head in heads:
                if layer == hook.layer():
                    new[:, :, head] = (cache[hook.name] if full else z)[:, :, head]
            return new

        hooks = [(lambda name: name.endswith("hook_z"), replace)]
        if not mlps:
            hooks.append((lambda name: name.endswith("mlp_out"), lambda x, hook: 0 * x))
        with hooked(model, hooks):
            return model(tokens)

    return only


def by_mask(model, tokens, kept, means):
    works = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, 1, dtype=torch.bool)
    for pair in kept:
        works[pair] = True
    hooks = [
        (f"blocks.{i}.attn.hook_z", functools.partial(lambda z, hook, i: torch.where(works[i], z, means[i]), i=i))
        for i in range(model.cfg.n_layers)
    ]
    with hooked(model, hooks):
        return model(tokens).double()


def row_by_row(model, tokens, kept, means):
    """Right: heads that do not work are overwritten one by one, and rows are run one by one."""
    out = set(itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads))) - set(kept)

    def silence(z, hook):
        for layer, head in out:
            if layer == hook.layer():
                z[:, :, head] = means[layer, :, head]

    with hooked(model, [(lambda name: name.endswith("hook_z"), silence)]):
        return torch.cat([model(row[None]) for row in tokens]).numpy()


def damages_means(model, tokens, kept, means):
    def replace(z, hook):
        new = means[hook.layer()].expand_as(z)
        new = new.clone() if len(z) > 1 else new
        for layer, head in kept:
            if layer == hook.layer():
                new[:, :, head] = z[:, :, head]
        return new

    with hooked(model, [(lambda name: name.endswith("hook_z"), replace)]):
        return model(tokens)


def uses_up_kept(model, tokens, kept, means):
    works = []
    while kept:
        works.append(kept.pop())
    return keeping()(model, tokens, works, means)


def all_but(kept, cfg):
    return [p for p in itertools.product(range(cfg.n_layers), range(cfg.n_heads)) if p not in kept]


ONLY = Answers(
    right=[keeping(), by_mask, row_by_row],
    wrong=[
        (keeping(all_but), "the other way round"),
        (keeping(mean=lambda means, z, layer: 0 * means[layer]), "set to zero"),
        (keeping(mean=lambda means, z, layer: means[0]), "the first layer's means"),
        (keeping(mean=lambda means, z, layer: z.mean(0)), "those of these tokens"),
        (keeping(lambda kept, cfg: kept[:1]), "only the first head"),
        (keeping(lambda kept, cfg: [(i, h) for i, _ in kept for h in range(cfg.n_heads)]), "all heads of these"),
        (keeping(full=True), "from the whole model's run"),
        (keeping(mlps=False), "MLPs are silent"),
        (damages_means, "written into `means`"),
        (uses_up_kept, "work on a copy"),
    ],
)

# 9.5 both_up_one_down


def gains(both, giver, copy=lambda E: E.T @ E):
    return lambda E, lift, gap: {"both": both(lift, gap) * copy(E), "giver": giver(lift, gap) * copy(E)}


def first_coordinates(E):
    return torch.diag((torch.arange(E.shape[1]) < len(E)).float())


def by_names(E, lift, gap):
    """Right: a sum over names, in numpy, and as much as one likes where no name is."""
    E = E.numpy().astype(np.float64)
    copy = sum(np.outer(e, e) for e in E)
    return {"both": 2 * lift * copy + 3 * (np.eye(E.shape[1]) - copy), "giver": -gap * copy}


BOTH_UP_ONE_DOWN = Answers(
    right=[
        gains(lambda lift, gap: 2 * lift, lambda lift, gap: -gap),
        gains(lambda lift, gap: 2 * lift, lambda lift, gap: -gap, lambda E: torch.eye(E.shape[1])),
        by_names,
    ],
    wrong=[
        (gains(lambda lift, gap: lift, lambda lift, gap: -gap), "half of the attention of `both`"),
        (gains(lambda lift, gap: 4 * lift, lambda lift, gap: -gap), "too large by 2"),
        (gains(lambda lift, gap: -2 * lift, lambda lift, gap: -gap), "`both` has the wrong sign"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: gap), "`giver` has the wrong sign"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: lift - gap), "taken away"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: gap - lift), "taken away"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: -gap - lift), "taken away along"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: -2 * gap), "too strong by 2"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: -gap / 2), "too weak by 2"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: 0), "`giver` does nothing"),
        (gains(lambda lift, gap: 2 * gap, lambda lift, gap: -lift), "lift and difference are exchanged"),
        (gains(lambda lift, gap: -gap, lambda lift, gap: 2 * lift), "`both` and `giver` are exchanged"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: -gap, first_coordinates), "a name is a row of E"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: -gap, lambda E: E @ E.T), "wrong shape"),
        (gains(lambda lift, gap: 2 * lift, lambda lift, gap: -gap, lambda E: E), "wrong shape"),
        (lambda E, lift, gap: {"both": 6 * E.T @ E, "giver": -5 * E.T @ E}, "lift"),
        (lambda E, lift, gap: (2 * lift * E.T @ E, -gap * E.T @ E), "a dictionary with"),
    ],
)

# 9.7 no


def says_no(layer=2, head=3, effect=-6.533, into="v"):
    return {"layer": layer, "head": head, "effect": effect, "input": into}


NO = Answers(
    right=[
        says_no(),
        says_no(torch.tensor(2), np.int64(3), torch.tensor(-6.86), "V "),
        says_no(2.0, 3, np.float32(-5.94)),
    ],
    wrong=[
        (says_no(effect=6.533), "the sign"),
        (says_no(effect=-0.965), "this is a share"),
        (says_no(effect=0.24), "this is what is left"),
        (says_no(effect=-96.5), "in percent"),
        (says_no(effect=-12.851), "swapping the giver"),
        (says_no(effect=-5.75264), "MLPs were frozen"),
        (says_no(into="q"), "the query changes next to nothing"),
        (says_no(into="k"), "the keys changes next to nothing"),
        (says_no(into="z"), "no such answer"),
        (says_no(into=2), "no such answer"),
        (says_no(2, 2, -3.373), "seed 0"),
        (says_no(3, 0, -5.219), "seed 1"),
        (says_no(3, 2), "layer and head are exchanged"),
        (says_no(3, 4), "counted from 0"),
        (says_no(2, 4), "heads are counted from 0"),
        (says_no(1, 5, -0.97), "the argmax"),
        (says_no(0, 15), "layers go from 0"),
        (says_no(effect="a lot"), "effect"),
        ({"layer": 2, "head": 3, "effect": -6.5}, "a dictionary with"),
    ],
)

# 9.8 two


def left(share=0.858, chance=5.9e-5):
    return {"share_of_difference": share, "probability": chance}


TWO = Answers(
    right=[left(), left(torch.tensor(0.88), np.float64(7e-6)), left(0.83, 0.0), left(np.float32(0.87), 2.4e-5)],
    wrong=[
        (left(6.50), "divide it by the whole model's"),
        (left(7.58), "the whole model's difference"),
        (left(1.0, 0.9757), "all heads kept"),
        (left(chance=0.9757), "the whole model's probability"),
        (left(85.8), "in percent"),
        (left(0.142), "the share that is lost"),
        (left(1.166), "turn it round"),
        (left(5.9e-5, 0.858), "exchanged"),
        (left(chance=0.858), "the share of the difference again"),
        (left(chance=-9.7), "its logarithm"),
        (left(chance=6.5), "at most 1"),
        (left(-0.006, 0.1213), "turn it round"),
        (left(chance=0.1213), "without the two heads"),
        (left(None), "is None"),
        ({"share": 0.858, "probability": 0.0}, "a dictionary with"),
    ],
)

# 9.9 statements

TRUTH = {"a": False, "b": True, "c": False, "d": True, "e": False, "f": True, "g": False, "h": True, "i": False}


STATEMENTS = Answers(
    right=[
        TRUTH,
        {name: str(value).lower() for name, value in TRUTH.items()},
        {name: np.bool_(value) for name, value in TRUTH.items()},
        {name: torch.tensor(value) for name, value in TRUTH.items()},
    ],
    wrong=[
        *(({**TRUTH, name: not value}, f"statement {name}") for name, value in TRUTH.items()),
        ({**TRUTH, "a": True}, "frozen heads do not react"),
        ({**TRUTH, "c": True}, "other heads act on this signal"),
        ({**TRUTH, "g": True}, "backup name movers step in"),
        ({**TRUTH, "h": "maybe"}, "no such answer"),
        ({name: value for name, value in TRUTH.items() if name != "i"}, "one judgement for each"),
    ],
)

BANK = {
    "roles": ROLES,
    "direct": DIRECT,
    "through": THROUGH,
    "only": ONLY,
    "both_up_one_down": BOTH_UP_ONE_DOWN,
    "path": PATH,
    "no": NO,
    "two": TWO,
    "statements": STATEMENTS,
}
