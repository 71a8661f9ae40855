"""Checks of chapter 9's exercises: path patching written anew in float64, closed forms, a circuit wired by hand."""

import functools
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp_edu import ioi
from interp_edu.checks.activation_patching import ALL, Named, _activations, _agree, _ask, _run, _Task, _task
from interp_edu.checks.attention_heads import _entries, _first, _shaped
from interp_edu.checks.core import Judge, _same, exercise
from interp_edu.checks.induction_heads import _numbers
from interp_edu.checks.transformer import _matrices, _model, _size, _tokens
from interp_edu.handmade import ioi_model
from interp_edu.pretrained import load
from interp_edu.transformer import Transformer

Receiver = tuple[int, int, str]

# 9.1 -------------------------------------------------------------------------------------------

ROLES = ("IO", "S1", "S2")


def _sentences(judge: Judge, batch: int, orders: Sequence[int], padding: int = 4) -> tuple[Tensor, list[int], Tensor]:
    """Rows of random words with names in them, the names, and where they stand, [batch, 3] in the order of the text.

    An order of 0 has the giver first, 1 the other. Words come again too, and rows have different lengths.
    """
    names, words = torch.randperm(60, generator=judge.generator).add(1).split([14, 46])
    length = _size(judge, 11, 14)
    rows, where = torch.zeros(batch, length + padding, dtype=torch.int64), torch.zeros(batch, 3, dtype=torch.int64)
    for row in range(batch):
        long = length - _size(judge, 0, 3) if batch > 1 else length
        rows[row, :long] = words[torch.randint(5, (long,), generator=judge.generator)]
        where[row] = torch.randperm(long - 2, generator=judge.generator)[:3].sort().values + 1
        first, second = names[torch.randperm(14, generator=judge.generator)[:2]]
        rows[row, where[row]] = torch.stack([first, second, (first, second)[orders[row % len(orders)]]])
    return rows, names.tolist(), where


def _roles(tokens: Tensor, where: Tensor) -> Tensor:
    """IO, S1 and S2, [role, batch]."""
    ids = tokens.gather(1, where)
    late = (ids[:, 1] == ids[:, 2]).long()[:, None]
    return torch.cat([where.gather(1, 1 - late), where.gather(1, late), where[:, 2:]], dim=1).T


def _wrong_roles(tokens: Tensor, where: Tensor) -> Named:
    io, s1, s2 = want = _roles(tokens, where)
    a, b, c = where.T
    end, starts = (tokens > 0).sum(1) - 1, torch.arange(len(tokens)) * tokens.shape[1]
    order = torch.where(tokens.gather(1, where)[:, :1] == tokens.gather(1, where)[:, 2:], 0, 1)[:, 0]
    found = {
        "IO and S1 are exchanged: IO stands there once, S1 is the one that comes again": (s1, io, s2),
        "S1 and S2 are exchanged: S1 is the first mention": (io, s2, s1),
        "the first name is taken for S1 always: in half of the sentences IO comes first": (b, a, c),
        "the first name is taken for IO always: in half of the sentences S1 comes first": (a, b, c),
        "these are the names (values of `tokens`): their positions are asked for": tuple(tokens.gather(1, want.T).T),
        "these number the names 0, 1, 2: positions in the row are asked for": (1 - order, order, 0 * a + 2),
        "these are indices into all rows laid end to end: take the column": (io + starts, s1 + starts, s2 + starts),
        "S2 is taken for the last word that is not padding: it is a name": (io, s1, end),
        "S2 is taken for the row's last token: it is a name": (io, s1, 0 * end + tokens.shape[1] - 1),
        "S2 is one further: the word after it was found": (io, s1, s2 + 1),
        "all are one too far: positions are counted from 0": (io + 1, s1 + 1, s2 + 1),
        "all are one too small: the first token counts, too": (io - 1, s1 - 1, s2 - 1),
        "S2 is where the name stands first: that is S1": (io, s1, s1),
        "S1 is where the name stands again: that is S2": (io, s2, s2),
        "the first row's positions are given for every row": (0 * a + io[0], 0 * a + s1[0], 0 * a + s2[0]),
    }
    return {text: torch.stack(list(value)) for text, value in found.items()}


@functools.lru_cache(maxsize=50)
def _texts(seed: int) -> list[tuple[str, Tensor, list[int], Tensor]]:
    judge, cases = Judge("", "", seed), []
    tokens = torch.tensor([[5, 7, 3, 8, 5, 7, 5, 9, 4], [5, 8, 7, 3, 7, 5, 9, 0, 0]])
    where = torch.tensor([[1, 3, 5], [1, 2, 4]])
    for case, batch, orders, padding in (
        ("both orders", 7, (0, 1, 1), 4),
        ("no padding, one sentence, S1 first", 1, (0,), 0),
        ("one sentence, IO first", 1, (1,), 2),
        ("all with S1 first", 4, (0,), 3),
        ("three sentences", 3, (1, 0, 0), 1),
        ("twenty sentences", 20, (0, 1), 5),
    ):
        cases.append((case, *_sentences(judge, batch, orders, padding)))
    return [("two sentences, one in either order, the second padded", tokens, [7, 2, 8], where), *cases]


@exercise("Prompts and positions")
def roles(fn: Any, judge: Judge) -> None:
    for case, tokens, names, where in _texts(judge.generator.initial_seed()):
        want, got, batch = _roles(tokens, where), judge.call(fn, tokens, list(names)), len(tokens)
        _entries(judge, got, *ROLES)
        found = []
        for name in ROLES:
            column: dict[tuple[int, ...], str] = {
                (batch, 1): "a position for each row, without an axis of its own: take [:, 0]",
                tuple(tokens.shape): "that is a mask or a table: a position for each row is asked for",
                (batch, 2): "IO stands there once, S1 and S2 are one position each: a position for each row",
            }
            known = {shape: text for shape, text in column.items() if shape != (batch,)}
            value = got[name]
            found.append(_shaped(judge, value, (batch,), known, name))
            kind = str(value.dtype if isinstance(value, Tensor) else np.asarray(value).dtype)
            likely = "positions are to be used as indices: give whole numbers"
            judge.that("int" in kind, f"the positions of {name} are whole numbers", seen=kind, likely=likely)
        mistakes = functools.partial(_wrong_roles, tokens, where)
        _agree(judge, torch.stack(found), want, f"{case} (rows of the result: IO, S1, S2)", mistakes)


# 9.2 and 9.6 -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=200)
def _both(task: _Task) -> tuple[Named, Named]:
    clean, corrupted = (
        _activations(task.model, x) | {"logits": _run(task.model, x, lambda _, y: y)} for x in task[1:3]
    )
    return clean, corrupted


@functools.lru_cache(maxsize=300)
def _sent(task: _Task, layer: int, head: int, how: str = "") -> Named:
    """All activations, and `logits`, of a run on `clean` with one head corrupted and all others frozen; or a slip's."""
    ours, theirs = _both(task)
    found: Named = {}

    def edit(name: str, x: Tensor) -> Tensor:
        if name.endswith("attn.hook_z"):
            here = int(name.split(".")[1])
            frozen = {"free": False, "but the last": here < task.model.cfg.n_layers - 1}.get(how, True)
            x = ((theirs if how in ("others", "inside out") else ours)[name] if frozen else x).clone()
            index: dict[str, tuple[Any, ...]] = {"layer": (ALL,), "last": (ALL, -1), "row": (0, ALL)}
            where = (*index.get(how, (ALL, ALL)), *([] if how == "layer" else [head]))
            if (here == layer and how != "nobody") or how == "number":
                source = ours[name] if how == "inside out" else theirs[name]
                x[where] = 0 if how == "zero" else source[where]
        if name.endswith("hook_mlp_out") and how == "mlps":
            x = ours[name]
        found[name] = x
        return x

    tokens = task.corrupted if how == "on corrupted" else task.clean
    return found | {"logits": _run(task.model, tokens, edit)}


def _written(task: _Task, layer: int, head: int) -> Tensor:
    """The change of what a head writes into the stream, [batch, pos, d_model]."""
    (ours, theirs), name = _both(task), f"blocks.{layer}.attn.hook_z"
    return (theirs[name] - ours[name])[:, :, head] @ task.model.get_parameter(f"blocks.{layer}.attn.W_O")[head].double()


def _attributed(task: _Task, layer: int, head: int) -> Tensor:
    """Logits by direct attribution: the change of what a head writes, by the clean run's last scale."""
    change, p = _written(task, layer, head), dict(task.model.named_parameters())
    if task.model.cfg.normalization_type is not None:
        last = _both(task)[0][f"blocks.{task.model.cfg.n_layers - 1}.hook_resid_post"]
        scale = (last.var(-1, correction=0, keepdim=True) + task.model.cfg.eps).sqrt()
        change = (change - change.mean(-1, keepdim=True)) / scale * p["ln_final.w"].double()
    return _both(task)[0]["logits"] + change @ p["unembed.W_U"].double()


@functools.lru_cache(maxsize=200)
def _wrong_paths(task: _Task, layer: int, head: int) -> Named:
    clean, want = _both(task)[0], _sent(task, layer, head)["logits"]
    slips = {
        "free": "heads after the sender are not frozen: this is the total effect, of ordinary patching. Heads of "
        "later layers could pass on what the sender wrote, so freeze those",
        "but the last": "the heads of the last layer are not frozen: range(n_layers) has all layers",
        "mlps": "MLPs are frozen, too: they are computed as they come, so that routes through them stay open",
        "layer": "all heads of the sender's layer are corrupted: only the one `head`",
        "number": "heads of this number are corrupted in every layer: only in the one `layer`",
        "last": "only the sender's last position is corrupted: take all",
        "row": "only the first row is corrupted: take all",
        "others": "the other heads are frozen to the corrupted run: freeze them to the clean one",
        "inside out": "the sender is clean and the others are corrupted: it is to be the other way round",
        "on corrupted": "the last run is on the corrupted prompt: it is to be on `clean`, with frozen heads",
        "zero": "the sender's output was set to zero: it is to be that of the corrupted run",
    }
    return {
        "nothing was changed, the logits are the clean run's: is the sender's corrupted z put in place last, after "
        "the freezing, and does the hook write into z, or return the new tensor?": clean["logits"],
        **{text: _sent(task, layer, head, how)["logits"] for how, text in slips.items()},
        "clean and corrupted are exchanged": _sent(task.turned(), layer, head)["logits"],
        "clean and corrupted are exchanged, and nothing is frozen": _sent(task.turned(), layer, head, "free")["logits"],
        "this is direct attribution, without MLPs: run the model": _attributed(task, layer, head),
        "this is by how much the logits change: return the logits": want - clean["logits"],
    }


def _pair(judge: Judge, batch: int, length: int, **shape: Any) -> _Task:
    """A random model, and prompts that differ at the last position, too."""
    task = _task(judge, batch, length, **shape)
    task.corrupted[:, -1] = (task.clean[:, -1] + 1) % task.model.cfg.d_vocab
    return task


@functools.lru_cache(maxsize=50)
def _senders(seed: int) -> list[tuple[str, _Task, int, int, Tensor]]:
    judge = Judge("", "", seed)
    some, one = _pair(judge, 3, 7, n_layers=3), _pair(judge, 1, 5, n_heads=4, d_head=3, n_layers=3, d_mlp=13)
    plain = _pair(judge, 4, 11, n_layers=4, n_heads=2, normalization_type=None, attn_only=True, d_mlp=0)
    a, b = _size(judge, 0, 2), _size(judge, 0, 3)
    cases = [
        ("a head of the first of three layers", some, 0, a),
        ("one row, a head of the middle layer", one, 1, b),
        ("a head of the last layer", some, 2, (a + 1) % 3),
    ]
    claim = "attention only, without LayerNorm: the logits change by what z changes, times W_O W_U"
    closed = (claim, plain, 1, 1, _attributed(plain, 1, 1))
    return [*((*case, _sent(*case[1:])["logits"]) for case in cases), closed]


@functools.cache
def _wired() -> tuple[_Task, Tensor, dict[str, Tensor]]:
    """The model wired by hand, sentences of both orders with the giver swapped; END, and the logits there by answer."""
    model = ioi_model().model
    p = ioi.prompts(model.tokenizer, 5, seed=9)
    task = _Task(model, p.tokens, p.with_names(S2=p.io), p.io, p.s)
    logits = {who: 10.0 * torch.eye(model.cfg.d_vocab)[ids] for who, ids in (("IO", p.io), ("S", p.s))}
    return task, p.roles["END"], logits


def _judge_wired(judge: Judge, got: Any, who: str, claim: str, likely: str) -> None:
    task, end, logits = _wired()
    got = judge.tensor(got, (*task.clean.shape, task.model.cfg.d_vocab))
    _agree(judge, got[torch.arange(len(end)), end], logits[who].double(), claim, dict, likely)


def _direct(fn: Any, judge: Judge) -> None:
    for case, task, layer, head, want in _senders(judge.generator.initial_seed()):
        seen = task.model.cfg.attn_only
        got = _ask(judge, fn, task, task.clean, task.corrupted, layer, head, seen=seen)
        _agree(judge, got, want, case, functools.partial(_wrong_paths, task, layer, head))
    task = _wired()[0]
    got = _ask(judge, fn, task, task.clean, task.corrupted, 0, 0)
    claim = "in the model wired by hand, the duplicate-token head tells the logits nothing directly: IO stays at 10"
    _judge_wired(judge, got, "IO", claim, "only the S-inhibition head reads it: which heads are not frozen?")


@exercise("Path patching")
def direct(fn: Any, judge: Judge) -> None:
    _direct(fn, judge)


# 9.3 -------------------------------------------------------------------------------------------


def _received(task: _Task, sender: tuple[int, int], receiver: Receiver, how: str = "", sent: str = "") -> Tensor:
    """The logits of a free run in which a receiver hears a sender; or what a slip makes of them, in either run."""
    (ours, theirs), (layer, head, side) = _both(task), receiver
    heard = theirs if how == "all of it" else _sent(task, *sender, sent)
    sides = side if how not in ("q", "k", "v", "qkv") else how
    names = [f"blocks.{layer}.attn.hook_{s}" for s in sides]
    places: dict[str, tuple[Any, ...]] = {
        "last": (ALL, -1, head),
        "row": (0, ALL, head),
        "layer": (ALL, ALL),
        "sender's": (ALL, ALL, sender[1]),
    }

    def edit(name: str, x: Tensor) -> Tensor:
        if name in names:
            x, index = x.clone(), places.get(how, (ALL, ALL, head))
            x[index] = heard[name][index]
        if name.endswith("hook_z") and how == "frozen":
            mine = x[:, :, head]
            x = ours[name].clone()
            if name == f"blocks.{layer}.attn.hook_z":
                x[:, :, head] = mine
        return x

    return _run(task.model, task.corrupted if how == "on corrupted" else task.clean, edit)


@functools.lru_cache(maxsize=400)
def _wrong_messages(task: _Task, sender: tuple[int, int], receiver: Receiver) -> Named:
    side, total, straight = receiver[2], *(_sent(task, *sender, how)["logits"] for how in ("free", ""))
    side_slips = {f"it was put into {s} and not into {side}: the side is the receiver's third": s for s in "qkv"}
    last_run = {
        "all heads of the receiver's layer hear it: only the one `head`": "layer",
        "the receiver's head is confused with the sender's": "sender's",
        "only the last position is patched, of the sender or of the receiver: take all": "last",
        "only the first row is patched, of the sender or of the receiver: take all": "row",
        f"it was put into q, k and v, or their outcome into z: only into {side}": "qkv",
        "the other heads are frozen in the last run, too: there nothing is frozen, so that the receiver's change has "
        "all its consequences": "frozen",
        "the receiver's input is that of the corrupted run, which all senders have changed: find it in the run of 9.2, "
        "with every other head frozen": "all of it",
        "the last run is on the corrupted prompt: it is to be on `clean`": "on corrupted",
    }
    message = {
        "nothing is frozen while the message travels, so it goes by way of further heads, too: find the receiver's "
        "input in the run of 9.2": "free",
        "MLPs are frozen while the message travels: they are computed as they come": "mlps",
        "all heads of the sender's layer are corrupted: only the one": "layer",
        "heads of the sender's number are corrupted in every layer: only in the sender's": "number",
        "the other heads are frozen to the corrupted run: freeze them to the clean one": "others",
        "the sender is clean and the others are corrupted: it is to be the other way round": "inside out",
        "the message was found in a run on the corrupted prompt: that is to be on `clean`, too": "on corrupted",
    }
    return {
        "nothing was changed, the logits are the clean run's: is the receiver's input recorded while the sender is "
        "corrupted, and put in place in the last run?": _both(task)[0]["logits"],
        "the sender was patched in the last run, and the receiver forgotten: this is the sender's total effect": total,
        "these are the logits of 9.2, with all frozen: they are only where the receiver's input is found": straight,
        **{
            text: _received(task, sender, receiver, how) for text, how in (side_slips | last_run).items() if how != side
        },
        **{text: _received(task, sender, receiver, sent=how) for text, how in message.items()},
        "clean and corrupted are exchanged": _received(task.turned(), sender, receiver),
    }


@functools.lru_cache(maxsize=50)
def _messages(seed: int) -> list[tuple[str, _Task, tuple[int, int], Receiver, Tensor]]:
    judge = Judge("", "", seed)
    some, one = _pair(judge, 3, 7, n_layers=3), _pair(judge, 1, 5, n_layers=3, n_heads=4, d_head=3, d_mlp=13)
    plain = _pair(judge, 4, 10, n_layers=3, n_heads=2, attn_only=True, d_mlp=0)
    a, b, c = torch.randperm(3, generator=judge.generator).tolist()
    cases: list[tuple[_Task, tuple[int, int], Receiver]] = [
        (some, (0, a), (2, b, "v")),
        (one, (1, 3), (2, a, "k")),
        (plain, (0, 1), (1, 0, "v")),
    ]
    found = []
    for task, (layer, head), receiver in cases:
        case = f"from L{layer}H{head} to {receiver[2]} of L{receiver[0]}H{receiver[1]}, {len(task.clean)} rows"
        found.append((case, task, (layer, head), receiver, _received(task, (layer, head), receiver)))
    clean, back = _both(some)[0]["logits"], "from a head of the same layer nothing arrives"
    return [*found, (back, some, (1, c), (1, a, "v"), clean)]


@exercise("Path patching")
def through(fn: Any, judge: Judge) -> None:
    for case, task, sender, receiver, want in _messages(judge.generator.initial_seed()):
        got = _ask(judge, fn, task, task.clean, task.corrupted, sender, receiver, seen=task.model.cfg.attn_only)
        _agree(judge, got, want, case, functools.partial(_wrong_messages, task, sender, receiver))
    task, wired = _wired()[0], "in the model wired by hand, "
    told = "the S-inhibition head tells the name mover's"
    for sender, receiver, who, claim in (
        ((1, 1), (2, 2, "q"), "S", f"{told} query where not to look: S goes to 10 and IO to 0"),
        ((0, 0), (2, 2, "q"), "IO", "the duplicate-token head tells the name mover nothing directly: IO stays at 10"),
        ((0, 0), (1, 1, "v"), "S", "the duplicate-token head's message to the S-inhibition head's values goes all the "
         "way: S goes to 10 and IO to 0"),
    ):  # fmt: skip
        got = _ask(judge, fn, task, task.clean, task.corrupted, sender, receiver)
        _judge_wired(judge, got, who, wired + claim, "frozen on the way to the receiver, free after it?")


# 9.4 -------------------------------------------------------------------------------------------

Heads = Sequence[tuple[int, int]]


def _kept(model: Transformer, tokens: Tensor, kept: Heads, means: Tensor, how: str = "") -> Tensor:
    """Float64 logits of a run in which only the heads `kept` work, and all others are at their mean; or a slip's."""
    full = _activations(model, tokens) if "full" in how else {}

    def edit(name: str, x: Tensor) -> Tensor:
        if name.endswith("hook_mlp_out") and how == "mlps":
            return 0 * x
        if not name.endswith("attn.hook_z"):
            return x
        layer = int(name.split(".")[1])
        mean = {"first layer": means[0], "turned": means.flip(0)[layer]}.get(how, means[layer]).double()
        own = {"zero": 0 * x, "batch": x.mean(0), "full batch": full.get(name, x).mean(0)}.get(how, mean)
        own = {"position": own[:1], "all positions": own.mean(0, keepdim=True)}.get(how, own)
        new, works = own.expand_as(x).clone(), [head for i, head in kept if i == layer]
        new[:, :, works] = (full[name] if how == "full" else x)[:, :, works]
        return new

    return _run(model, tokens, edit)


@functools.lru_cache(maxsize=300)
def _wrong_kept(model: Transformer, tokens: Tensor, kept: Heads, means: Tensor) -> Named:
    every = list(itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads)))
    layers, numbers, last = {i for i, _ in kept}, {h for _, h in kept}, kept[-1:]
    sets: dict[str, Heads] = {
        "the heads that are kept were replaced, and the others work: it is to be the other way round": [
            pair for pair in every if pair not in kept
        ],
        "nothing was replaced, all heads work": every,
        "no head is kept, all are replaced": [],
        "only the first head of the list is kept: keep all of them": kept[:1],
        "only the last head of the list is kept: keep all of them": last,
        "one head of each layer is kept: a layer may have several": list(dict(kept).items()),
        "all heads of these layers are kept": [pair for pair in every if pair[0] in layers],
        "heads of these numbers are kept in every layer: each has its own": [p for p in every if p[1] in numbers],
        "layers without a kept head were left alone: their heads are to be replaced, too": [
            pair for pair in every if pair in kept or pair[0] not in layers
        ],
        "layer and head are exchanged": [pair for pair in every if pair[::-1] in kept],
    }
    slips = {
        "the others are set to zero: their means are asked for": "zero",
        "the first layer's means are used in every layer": "first layer",
        "the means of the layers are in reverse order": "turned",
        "the means are those of these tokens, in this run: use the `means` that are given": "batch",
        "the means are those of these tokens, in the whole model: use the `means` that are given": "full batch",
        "the first position's means are used at all positions": "position",
        "the means were averaged over positions: each has its own": "all positions",
        "the kept heads have their values from the whole model's run: they are to work on what they see in this run, "
        "where the others' messages are replaced": "full",
        "MLPs are silent: they work": "mlps",
    }
    return {
        **{text: _kept(model, tokens, heads, means) for text, heads in sets.items()},
        **{text: _kept(model, tokens, kept, means, how) for text, how in slips.items()},
    }


@functools.lru_cache(maxsize=50)
def _circuits(seed: int) -> list[tuple[str, _Task, Heads, Tensor, Tensor]]:
    judge = Judge("", "", seed)
    found: list[tuple[str, _Task, Heads, Tensor, Tensor]] = []

    def add(batch: int, length: int, cases: dict[str, Heads], **shape: Any) -> None:
        model = _model(judge, **shape)
        tokens = _tokens(judge, model, batch, length)
        means = judge.randn(model.cfg.n_layers, length, model.cfg.n_heads, model.cfg.d_head)
        task = _Task(model, tokens, tokens, tokens[:, 0], tokens[:, 0])
        found.extend((case, task, kept, means, _kept(model, tokens, kept, means)) for case, kept in cases.items())

    a, b, c, *_ = torch.randperm(5, generator=judge.generator).tolist()
    add(3, 7, {"four heads": ((2, a), (0, c), (0, a), (2, b)), "no head": ()}, n_layers=3, n_heads=5, d_head=4)
    add(1, 6, {"three heads": ((1, 0), (0, 2), (1, 2))})
    whole = tuple(itertools.product(range(2), range(4)))
    add(4, 9, {"every head": whole}, n_heads=4, d_mlp=0, attn_only=True)
    return found


@exercise("Is that the circuit?")
def only(fn: Any, judge: Judge) -> None:
    for case, task, kept, means, want in _circuits(judge.generator.initial_seed()):
        given, rows = list(kept), len(task.clean)
        got = _ask(judge, fn, task, task.clean, given, means, seen=task.model.cfg.attn_only)
        mistakes = functools.partial(_wrong_kept, task.model, task.clean, kept, means)
        _agree(judge, got, want, f"{case}, {rows} row{'s' * (rows > 1)}", mistakes)
        judge.that(given == list(kept), "the list `kept` is as it was", seen=given, likely="work on a copy of it")
        parameters = list(inspect.signature(fn).parameters.values())
        if rows == 1 and len(parameters) == 4 and parameters[3].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            mine = means.clone()  # by name the learner's code gets it itself, not a copy
            judge.call(fn, task.model, task.clean, given, **{parameters[3].name: mine})
            likely = "an expanded tensor is a view: kept heads were written into `means`; clone() before writing"
            judge.that(torch.equal(mine, means), "`means` is as it was", seen="other numbers", likely=likely)


# 9.5 -------------------------------------------------------------------------------------------


def _by_role(E: Tensor, both: Tensor, giver: Tensor) -> tuple[Tensor, Tensor]:
    """How far IO's logit is above each name's that is not there, [io, s, other], and above the giver's, [io, s]."""
    E, n = E.double(), len(E)
    logits = (E[:, None] + E) / 2 @ both @ E.T + E @ giver @ E.T  # io, s, name
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    above = logits[i, j, i][..., None] - logits
    pairs = i != j
    absent = pairs[..., None] & ((i[..., None] != torch.arange(n)) & (j[..., None] != torch.arange(n)))
    return above[absent], above[i, j, j][pairs]


def _why_not(lifts: Tensor, gaps: Tensor, lift: float, gap: float) -> str:
    got, off = float(lifts.mean()), float(gaps.mean())

    def is_(value: float, want: float) -> bool:
        return abs(value - want) < 1e-3 * (1 + abs(want))

    level = "the first head raises both to the same height, so that the second one's gain alone makes the difference"
    if float(lifts.std()) > 1e-2 or float(gaps.std()) > 1e-2:
        return "it works for some names and not for others: a name is a row of E, and E.T @ E copies each alike"
    return _first(
        {
            "lift and difference are exchanged: `both` makes the lift": is_(got, gap) and is_(off, lift),
            "IO gets half of the attention of `both`, and so half of its gain": is_(got, lift / 2),
            "the gain of `both` is too large by 2: twice lift will do": is_(got, 2 * lift),
            "`both` has the wrong sign: it raises the names": is_(got, -lift) or is_(got, -lift / 2),
            "the lift does not come out: IO gets half of the gain of `both`": not is_(got, lift),
            "`giver` has the wrong sign: it lowers the name that it finds": is_(off, -gap),
            f"the lift was taken away from the difference: {level}": is_(off, gap - lift) or is_(off, lift - gap),
            f"the lift was taken away along with the difference: {level}": is_(off, gap + lift),
            "twice the lift plays no part in the gain of `giver`": is_(off, gap - 2 * lift) or is_(off, gap + 2 * lift),
            "`giver` is too strong by 2: it has all its weight on S2, so nothing is halved": is_(off, 2 * gap),
            "`giver` is too weak by 2: it has all its weight on S2, which comes with all its gain": is_(off, gap / 2),
            "the two names are level: `giver` does nothing": is_(off, 0.0),
        }
    )


@exercise("Found: the course model, from the logits backwards")
def both_up_one_down(fn: Any, judge: Judge) -> None:
    for n, d, lift, gap in ((4, 7, 3.0, 5.0), (3, 11, 6.0, 2.5), (9, 13, 0.7, 9.0), (5, 6, 8.0, 8.5), (12, 20, 4.0, 0)):
        E = torch.linalg.qr(judge.randn(d, n))[0].T.contiguous()
        lift, gap = lift + float(judge.rand(1)), gap + 0.3 * float(judge.rand(1))
        W = _matrices(judge, judge.call(fn, E, lift, gap), {"both": (d, d), "giver": (d, d)})
        lifts, gaps = _by_role(E, W["both"], W["giver"])
        wanted = torch.full_like(lifts, lift), torch.full_like(gaps, gap)
        if _same(lifts, wanted[0], 1e-4) and _same(gaps, wanted[1], 1e-4):
            judge.that(True, "both up, one down")
            continue
        turned = _by_role(E, W["giver"], W["both"])
        swapped = all(_same(got, want, 1e-4) for got, want in zip(turned, wanted, strict=True))
        likely = "`both` and `giver` are exchanged" if swapped else _why_not(lifts, gaps, lift, gap)
        judge.fail(
            f"{n} names in {d} dimensions: IO above the others and above the giver",
            seen=f"by {float(lifts.mean()):.3g} and {float(gaps.mean()):.3g} on average",
            expected=f"by lift, {lift:.3g}, and difference, {gap:.3g}, for every pair of names",
            likely=likely,
        )


# 9.6 -------------------------------------------------------------------------------------------


@exercise("Path patching")
def path(fn: Any, judge: Judge) -> None:
    _direct(fn, judge)


# 9.7 -------------------------------------------------------------------------------------------


@functools.cache
def _prompted(seed: int, own: bool = True) -> tuple[_Task, ioi.Prompts]:
    """A course model with sentences: the exercise's or, for the truth, others."""
    model = load("tinyworld", seed=seed)
    p = ioi.prompts(model.tokenizer, 60, seed=91 * own)
    return _Task(model, p.tokens, p.abc(seed=92 * own), p.io, p.s), p


def _at_end(task: _Task, p: ioi.Prompts, logits: Tensor) -> tuple[float, float]:
    """The mean logit difference at END, and the mean probability of IO."""
    last = p.at("END", logits)
    io, s = (last.gather(1, ids[:, None]) for ids in (task.right, task.wrong))
    return float((io - s).mean()), float((io - last.logsumexp(1, keepdim=True)).exp().mean())


@functools.cache
def _whole(seed: int, own: bool = True) -> tuple[float, float]:
    task, p = _prompted(seed, own)
    return _at_end(task, p, _both(task)[0]["logits"])


@functools.cache
def _effect(layer: int, head: int, own: bool = True, how: str = "") -> float:
    """What the corruption of a head's direct path changes in the course model of seed 2."""
    task, p = _prompted(2, own)
    return _at_end(task, p, _sent(task, layer, head, how)["logits"])[0] - _whole(2, own)[0]


INPUTS = {
    "q": "compare the three: the path from (0, None) into the query changes next to nothing",
    "k": "compare the three: the path from (0, None) into the keys changes next to nothing",
    "v": "",
}


@exercise("Found: the course model, from the logits backwards")
def no(answer: Any, judge: Judge) -> None:
    _entries(judge, answer, "layer", "head", "effect", "input")
    numbers = {name: value for name, value in answer.items() if name != "input"}
    layer, head, effect = _numbers(judge, numbers, "layer", "head", "effect").values()
    judge.that(layer in range(4) and head in range(6), "layers go from 0 to 3, heads to 5", seen=f"L{layer}H{head}")
    truth = {pair: _effect(*pair) for pair in itertools.product(range(4), range(6))}
    here, best = (int(layer), int(head)), max(truth, key=lambda pair: abs(truth[pair]))
    known = {
        best[::-1]: "layer and head are exchanged",
        (best[0] + 1, best[1] + 1): "layers and heads are counted from 0",
        (best[0], best[1] + 1): "heads are counted from 0",
        (2, 2): "in the course model of seed 0 it is this one: load it with seed=2",
        (3, 0): "in the course model of seed 1 it is this one: load it with seed=2",
    }
    likely = known.get(here, "the argmax of the absolute values of paths.sweep(), and divmod by the number of heads")
    claim, expected = "the head with the largest direct effect", f"there is one with {truth[best]:.1f}"
    judge.that(here == best, claim, seen=f"one with {truth[here]:.2f}", expected=expected, likely=likely)
    want, size = truth[best], abs(effect)
    slips = {
        "MLPs were frozen: leave freeze_mlps as it is": abs(effect - _effect(*best, own=False, how="mlps")) < 3e-3,
        "the sign: the difference falls (or are clean and corrupted exchanged?)": effect > 0.6 * abs(want),
        "this is a share: by how many logits does it change?": 0.7 < size < 1.3,
        "this is what is left of the difference: by how much does it change?": size < 1.5,
        "this is in percent: by how many logits does it change?": size > 50,
        "that is what swapping the giver does: take the ABC sentences, p.abc()": effect < 1.5 * want,
    }
    likely, expected = _first(slips), f"{want:.1f}, give or take 1.3"
    ok = abs(effect - want) < 1.3 and not likely
    claim = f"by how much the difference changes when the direct path of L{best[0]}H{best[1]} is corrupted"
    judge.that(ok, claim, seen=effect, expected=expected, likely=likely or "paths.sweep(), on p.difference")
    judge.choice(answer["input"], INPUTS, "v", "the input into which MLP 0 sends what matters most")


# 9.8 -------------------------------------------------------------------------------------------

TWO = ((3, 0), (3, 4))


@functools.cache
def _mute(seed: int = 1, own: bool = True, kept: Heads = TWO, how: str = "") -> tuple[float, float]:
    """The share of the logit difference that is left with `kept` alone, and the right name's probability then."""
    task, p = _prompted(seed, own)
    runs = [_activations(task.model, p.abc(draw)) for draw in range(10)]
    means = {name: torch.stack([run[name] for run in runs]).mean(0) for name in runs[0] if name.endswith("attn.hook_z")}

    def edit(name: str, x: Tensor) -> Tensor:
        if name in means:
            works = torch.tensor([(int(name.split(".")[1]), h) in kept for h in range(x.shape[2])])
            works = works.logical_not() if how == "others" else works
            x = torch.where(works[:, None], x, 0 * x if how == "zero" else means[name])
        return x

    difference, chance = _at_end(task, p, _run(task.model, task.clean, edit))
    return difference / _whole(seed, own)[0], chance


def _why_mute(share: float, chance: float) -> str:
    (want, _), (difference, full) = _mute(), _whole(1)

    def near(value: float, off: float = 0.1) -> bool:
        return abs(share - value) < off

    right = near(want)
    known = {
        "the two answers are exchanged": abs(chance - want) < 0.1 and near(0.0, 0.02),
        "this is the whole model's difference: divide by it what is left": near(difference, 0.4),
        "this is the logit difference that is left: divide it by the whole model's": near(want * difference, 0.8),
        "this is in percent: the plain share is asked for": near(100 * want, 7.0),
        "this is the whole divided by what is left: turn it round": near(1 / want),
        "this is the share that is lost": near(1 - want) and chance < 0.02,
        "this is the whole model, with all heads kept: keep the two alone": near(1.0, 0.01),
        "this is the share of the difference again: take probability(...) as metric": right
        and abs(chance - want) < 0.1,
        "this is the whole model's probability: keep the two heads alone": right and abs(chance - full) < 0.05,
        "a probability is at least 0: is this its logarithm?": right and chance < 0,
        "a probability is at most 1: the metric is probability(p.io, p.roles['END'])": right and chance > 1,
        "that is the probability without the two heads: keep them, and no others": right and 0.04 < chance < 0.25,
    }
    slips: dict[str, dict[str, Any]] = {
        "the two heads were knocked out and the others kept: turn it round": {"how": "others"},
        "the others are set to zero: ioi.Knockout replaces them by their means": {"how": "zero"},
        "this is the course model of seed 0: load it with seed=1": {"seed": 0},
        "this is the course model of seed 2: load it with seed=1": {"seed": 2},
        "only L3H0 was kept: keep L3H4, too": {"kept": TWO[:1]},
        "only L3H4 was kept: keep L3H0, too": {"kept": TWO[1:]},
    }
    plain, last = _first(known), "ioi.Knockout(model, p), called with the two heads and with knockout.network"
    return plain or next((text for text, slip in slips.items() if near(_mute(own=False, **slip)[0], 5e-3)), last)


@exercise("Is that the circuit?")
def two(answer: Any, judge: Judge) -> None:
    share, chance = _numbers(judge, answer, "share_of_difference", "probability").values()
    want = _mute()[0]
    fits = abs(share - want) < 0.1, 0 <= chance < 0.005
    likely = "" if all(fits) else _why_mute(share, chance)
    expected, claim = f"{want:.2f}, give or take 0.1", "the share of the logit difference that two heads leave"
    judge.that(fits[0], claim, seen=share, expected=expected, likely=likely)
    claim = "the right name's probability with two heads alone"
    judge.that(fits[1], claim, seen=chance, expected="below 0.005", likely=likely)


# 9.9 -------------------------------------------------------------------------------------------

STATEMENTS = {
    "a": (False, "frozen heads do not react: what later heads would make of it is exactly what is left out"),
    "b": (True, "only heads are frozen; what a MLP makes of the message on its way counts as direct"),
    "c": (False, "they attend from S2 to S1 and signal that a name came twice; other heads act on this signal"),
    "d": (True, "what they write at END goes into the name movers' queries, and says where not to look"),
    "e": (False, "the course's three models solve it by two kinds of route, and GPT-2 by a third"),
    "f": (True, "the difference compares two names: both may be far below all other words, as in exercise 9.8"),
    "g": (False, "backup name movers step in when they are gone, so little is lost though they did the work"),
    "h": (True, "an ABC sentence has the same words and three different names: nothing tells which is to come"),
    "i": (False, "a faithful circuit may lack the backups: take the name movers out of circuit and model to see it"),
}


@exercise("GPT-2")
def statements(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)
