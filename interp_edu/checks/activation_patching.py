"""Checks of chapter 8's exercises: a forward pass written anew in float64, gates known by hand, finite differences."""

import copy
import functools
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interp_edu import tinyworld
from interp_edu.checks.attention_heads import _number, _shaped
from interp_edu.checks.core import Judge, _same, exercise
from interp_edu.checks.induction_heads import _numbers
from interp_edu.checks.transformer import _attend, _matrices, _model, _norm, _tokens
from interp_edu.handmade import gate_model, induction_model
from interp_edu.pretrained import load
from interp_edu.transformer import Transformer

Named = dict[str, Tensor]
Heads = Sequence[tuple[int, int]]
ALL = slice(None)


class _Task(NamedTuple):
    """A model, two prompts, and for each row the two tokens that the metric compares."""

    model: Transformer
    clean: Tensor
    corrupted: Tensor
    right: Tensor
    wrong: Tensor

    def turned(self) -> "_Task":  # for noising in place of denoising
        return self._replace(clean=self.corrupted, corrupted=self.clean)


# A forward pass --------------------------------------------------------------------------------
def _run(model: Transformer, tokens: Tensor, edit: Callable[[str, Tensor], Tensor]) -> Tensor:
    """Logits in float64, by a forward pass written anew; `edit` says what becomes of each activation."""
    cfg, p = model.cfg, {name: value.detach().double() for name, value in model.named_parameters()}

    def norm(x: Tensor, name: str) -> Tensor:
        return x if cfg.normalization_type is None else _norm(x, p[f"{name}.w"], p[f"{name}.b"], cfg.eps)

    x = edit("hook_embed", p["embed.W_E"][tokens]) + p["pos_embed.W_pos"][: tokens.shape[1]]
    for at in (f"blocks.{layer}." for layer in range(cfg.n_layers)):
        x = edit(f"{at}hook_resid_pre", x)
        y, qkv = norm(x, f"{at}ln1"), []
        for side in "QKV":
            own = torch.einsum("bpd,hde->bphe", y, p[f"{at}attn.W_{side}"]) + p[f"{at}attn.b_{side}"]
            qkv.append(edit(f"{at}attn.hook_{side.lower()}", own))
        z = edit(f"{at}attn.hook_z", _attend(qkv[0], qkv[1], qkv[2]))
        x = x + edit(f"{at}hook_attn_out", z.flatten(2) @ p[f"{at}attn.W_O"].flatten(0, 1) + p[f"{at}attn.b_O"])
        if not cfg.attn_only:
            x = edit(f"{at}hook_resid_mid", x)
            pre = norm(x, f"{at}ln2") @ p[f"{at}mlp.W_in"] + p[f"{at}mlp.b_in"]
            post = edit(f"{at}mlp.hook_post", pre.relu() if cfg.act_fn == "relu" else F.gelu(pre, approximate="tanh"))
            x = x + edit(f"{at}hook_mlp_out", post @ p[f"{at}mlp.W_out"] + p[f"{at}mlp.b_out"])
        x = edit(f"{at}hook_resid_post", x)
    return norm(x, "ln_final") @ p["unembed.W_U"] + p["unembed.b_U"]


def _plain(model: Transformer, tokens: Tensor) -> Tensor:
    return _run(model, tokens, lambda _, x: x)


def _activations(model: Transformer, tokens: Tensor) -> Named:
    """Everything by hook name."""
    found: Named = {}
    _run(model, tokens, lambda name, x: found.setdefault(name, x))
    return found


def _patched(task: _Task, name: str, index: Any, how: Callable[[Tensor, Tensor], Tensor] = lambda x, s: s) -> Tensor:
    """The logits of a corrupted run in which `index` of one activation is the clean one, or what `how` makes."""
    source = _activations(task.model, task.clean)[name][index]

    def edit(at: str, x: Tensor) -> Tensor:
        if at == name:
            x = x.clone()
            x[index] = how(x[index], source)
        return x

    return _run(task.model, task.corrupted, edit)


def _with_heads(task: _Task, cells: Sequence[Heads], step: float = 1.0, at: slice = ALL) -> Tensor:
    """Logits [cell, batch, pos, d_vocab] of the corrupted run with the clean z of each cell's heads, or on the way."""
    goal, batch = _activations(task.model, task.clean), len(task.clean)
    wanted = [(f"blocks.{layer}.attn.hook_z", cell, h) for cell, heads in enumerate(cells) for layer, h in heads]

    def edit(name: str, x: Tensor) -> Tensor:
        here = [(cell, head) for place, cell, head in wanted if place == name]
        x = x.clone() if here else x
        for cell, head in here:
            where = (slice(cell * batch, (cell + 1) * batch), at, head)
            x[where] = x[where].lerp(goal[name][:, at, head], step)
        return x

    return _run(task.model, task.corrupted.repeat(len(cells), 1), edit).unflatten(0, (len(cells), batch))


def _difference(logits: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """Right minus wrong for each row, of logits [..., batch, d_vocab]."""
    rows = torch.arange(len(right))
    return logits[..., rows, right] - logits[..., rows, wrong]


def _both_ends(task: _Task, pos: int = -1) -> tuple[Tensor, Tensor]:
    """The logit differences of the corrupted and the clean run, a number for each row."""
    low, high = (_plain(task.model, tokens)[:, pos] for tokens in (task.corrupted, task.clean))
    return _difference(low, task.right, task.wrong), _difference(high, task.right, task.wrong)


def _each_head(model: Transformer) -> list[Heads]:
    return [[pair] for pair in itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads))]


def _shares(task: _Task, cells: Sequence[Heads] | None = None, at: slice = ALL) -> Tensor:
    """What the heads of each cell restore, or each head alone, as [layer, head]."""
    low, high = (end.mean() for end in _both_ends(task))
    value = _difference(
        _with_heads(task, cells or _each_head(task.model), at=at)[:, :, -1], task.right, task.wrong
    ).mean(-1)
    return ((value - low) / (high - low)).reshape(task.model.cfg.n_layers, -1)


def _task(judge: Judge, batch: int, length: int, **change: Any) -> _Task:
    """A random model, rows that differ at position 0 and one more, and the tokens that this concerns most."""
    model = _model(judge, **change)
    clean = _tokens(judge, model, batch, length)
    corrupted = clean.clone()
    for position in (0, length // 2):
        shift = torch.randint(1, model.cfg.d_vocab, (batch,), generator=judge.generator)
        corrupted[:, position] = (corrupted[:, position] + shift) % model.cfg.d_vocab
    low, high = (_plain(model, tokens)[:, -1] for tokens in (corrupted, clean))
    return _Task(model, clean, corrupted, (high - low).argmax(-1), (high - low).argmin(-1))


def _edgy(task: _Task) -> _Task:
    """The same row, asking for two words for which some head restores less than nothing or more than all."""
    low, high = (_plain(task.model, tokens)[0, -1] for tokens in (task.corrupted, task.clean))
    change = torch.stack([high - low, *(_with_heads(task, _each_head(task.model))[:, 0, -1] - low)])
    change = change[:, :, None] - change[:, None]  # [clean and each head, right, wrong]
    large = change[0] > 0.2 * change[0].max()
    extreme = ((change[1:] / change[0]) - 0.5).abs().amax(0).where(large, torch.tensor(0.0).double())
    right, wrong = divmod(int(extreme.argmax()), len(low))
    return task._replace(right=torch.tensor([right]), wrong=torch.tensor([wrong]))


def _ask(judge: Judge, fn: Any, task: _Task, *args: Any, seen: bool = False) -> Any:
    """The value for a copy of the model, which is to be left as it was; `seen`: somebody else's hook is there."""
    model = copy.deepcopy(task.model)
    if seen:
        model.attached["blocks.0.hook_resid_post"] = [lambda x, hook: None]
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    attached = {name: list(hooks) for name, hooks in model.attached.items()}
    got = judge.call(fn, model, *args)
    now = dict(model.named_parameters())
    changed = [name for name, (value, _) in before.items() if not torch.equal(now[name], value)]
    likely = "a hook changes what passes by, and leaves the weights alone"
    judge.that(not changed, "the weights are as they were", seen=f"{', '.join(changed)} changed", likely=likely)
    wanting = [n for n, (_, wants) in before.items() if now[n].requires_grad != wants or now[n].grad is not None]
    likely = "requires_grad was changed, or backward() has left gradients: torch.autograd.grad hands back what you ask"
    judge.that(not wanting, "gradients are as they were", seen=", ".join(wanting[:3]), likely=likely)
    left = [name for name, hooks in model.attached.items() if hooks != attached.get(name)]
    likely = "a hook stays attached, and changes every later run: use a `with hooked(...)` block"
    judge.that(not left, "no hook is left on the model", seen=", ".join(left), likely=likely)
    gone = sorted(set(attached) - set(model.attached))
    likely = "`with hooked(...)` takes away its own hooks and no others"
    judge.that(not gone, "a hook that was attached before is still there", seen=", ".join(gone), likely=likely)
    return got


def _agree(judge: Judge, got: Any, want: Tensor, claim: str, mistakes: Callable[[], Named], likely: str = "") -> None:
    """judge.close, but mistakes are worked out for a wrong answer only."""
    judge.that(not isinstance(got, tuple), "one tensor is returned", seen="a tuple", likely="logits and nothing else")
    value = judge.tensor(got, tuple(want.shape))
    known = {} if _same(value, want.double(), 1e-4) else mistakes()
    judge.close(value, want, claim, mistakes=known, likely=likely)


# 8.1 -------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=300)
def _wrong_patches(task: _Task, name: str, p: int) -> Named:
    model, clean, corrupted = task[:3]
    n, p = clean.shape[1], p % clean.shape[1]

    def put(*index: Any) -> Tensor:
        return _patched(task, name, index)

    put_in = functools.partial(_patched, task, name, (ALL, p))
    noising = "this is noising, a corrupted activation in the clean run: denoising runs on `corrupted`"
    return {
        "nothing was changed, or it was patched with its own activation. Does the hook write into x, or return the "
        "new tensor, and is the source the clean run?": _plain(model, corrupted),
        "these are the clean run's logits: the run with the hook is that on `corrupted`": _plain(model, clean),
        noising: _patched(task.turned(), name, (ALL, p)),
        "the clean activation was added: it takes the other's place": put_in(lambda x, s: x + s),
        "zero was put there: that is ablation": put_in(lambda x, s: 0 * s),
        "only the first row is patched: each row gets its own": put(slice(0, 1), p),
        "all positions are patched: only `position` is to be": put(ALL),
        "only the last position is patched": put(ALL, -1),
        "`position` is off by one: the one after it was patched": put(ALL, (p + 1) % n),
        "`position` is off by one: the one before it was patched": put(ALL, p - 1),
        "a row is patched, not a position: the axes are [batch, pos, ...]": put(p % len(clean)),
        "the first row's activation was put into all rows": put_in(lambda x, s: s[:1].expand_as(s)),
    }


@functools.lru_cache(maxsize=50)
def _places(seed: int) -> list[tuple[_Task, str, int, Tensor]]:
    judge, middle = Judge("", "", seed), 1 + seed % 5
    some, one = _task(judge, 3, 7), _task(judge, 1, 5, n_heads=2, d_head=9, d_mlp=13)
    plain, single = _task(judge, 4, 11, attn_only=True, d_mlp=0), some.clean.clone()
    single[:, 3] = some.corrupted[:, 3]
    cases: list[tuple[_Task, str, int]] = [
        *((some, f"blocks.{name}", p) for name, p in (("1.attn.hook_z", middle), ("1.attn.hook_q", -1))),
        *((one, f"blocks.{name}", p) for name, p in (("0.mlp.hook_post", 2), ("0.hook_attn_out", -1))),
        (some, "blocks.0.hook_resid_pre", 0),
        (one, "blocks.1.hook_resid_mid", -5),
        (plain, "blocks.1.hook_resid_pre", middle),
    ]
    whole = _plain(some.model, some.clean)  # the only position that differs brings back the clean run
    found = [(task, name, p, _patched(task, name, (ALL, p))) for task, name, p in cases]
    return [*found, (some._replace(corrupted=single), "hook_embed", 3, whole)]


@exercise("Four steps")
def patched_logits(fn: Any, judge: Judge) -> None:
    for task, name, position, want in _places(judge.generator.initial_seed()):
        got = _ask(judge, fn, task, task.clean, task.corrupted, name, position, seen=task.model.cfg.attn_only)
        claim = f"{name} at position {position}, {len(task.clean)} rows"
        _agree(judge, got, want, claim, functools.partial(_wrong_patches, task, name, position))


# 8.2 -------------------------------------------------------------------------------------------
def _restored_mistakes(c: Tensor, k: Tensor, p: Tensor, right: Tensor, wrong: Tensor) -> Named:
    """What mistakes make of the share; c, k and p are the logits of the clean, corrupted and patched run."""
    rows = torch.arange(len(right))

    def share(high: Tensor, low: Tensor, value: Tensor) -> Tensor:
        return (value.mean() - low.mean()) / (high.mean() - low.mean())

    def chosen(find: Callable[[Tensor], Tensor]) -> Tensor:
        return share(*map(find, (c, k, p)))

    high, low, value = (_difference(x, right, wrong) for x in (c, k, p))
    x, length, ratios = share(high, low, value), (high - low).mean(), (value - low) / (high - low)
    start = "the scale starts at the corrupted value"
    return {
        "clean and corrupted are exchanged: the corrupted run is 0 and the clean run 1": 1 - x,
        "this is a mean of ratios: take the means over rows first": ratios.mean(),
        "divided by the clean value alone: the scale is clean minus corrupted": (value - low).mean() / high.mean(),
        f"nothing is subtracted from the patched value: {start}": value.mean() / length,
        "this is what came back in logits: divide it by clean minus corrupted": (value - low).mean(),
        "divided by the absolute length: the scale may run downwards": (value - low).mean() / length.abs(),
        "this is the patched logit difference itself: put it on the scale": value.mean(),
        "the sign of the denominator: it is clean minus corrupted": -x,
        "it is cut off at 0 and 1: a patch may do harm, or overshoot": x.clamp(0, 1),
        "the sign is lost: a patch may do harm": x.abs(),
        "this is the first row alone: take the mean over rows": share(high[:1], low[:1], value[:1]),
        "only the right token's logit: take the wrong one's away": chosen(lambda x: x[rows, right]),
        "logits[:, right] mixes rows: use torch.arange or gather": chosen(lambda x: x[:, right] - x[:, wrong]),
        "these are probabilities: take logits": chosen(lambda x: _difference(x.softmax(-1), right, wrong)),
        "the right token's probability: take logits": chosen(lambda x: x.softmax(-1)[rows, right]),
    }


@exercise("Four steps")
def restored(fn: Any, judge: Judge) -> None:
    zero = torch.zeros(2, 3)
    clean, corrupted, patched = zero + 1, zero + 1, zero + 1
    clean[:, 0], corrupted[:, 1] = torch.tensor([5.0, 3.0]), torch.tensor([3.0, 5.0])
    patched[:, 0] = torch.tensor([2.0, 1.0])
    ends = torch.tensor([0, 0]), torch.tensor([1, 1])  # differences: clean 4, 2; corrupted -2, -4; patched 1, 0
    hand = ("two rows, worked by hand", (clean, corrupted, patched, *ends), torch.tensor(3.5 / 6))
    cases = []
    for batch, V, share in ((5, 7, 0.4), (1, 11, 0.7), (3, 9, 1.6), (4, 13, -0.7), (1, 6, -0.2), (30, 50, 0.1)):
        pairs = torch.stack([torch.randperm(V, generator=judge.generator)[:2] for _ in range(batch)])
        right, wrong, rows = pairs[:, 0], pairs[:, 1], torch.arange(batch)
        clean, corrupted, noise = judge.randn(batch, V), judge.randn(batch, V), judge.randn(batch, V)
        clean[rows, right] += 2 + 4 * judge.rand(batch)
        corrupted[rows, wrong] += 1 + 2 * judge.rand(batch)
        patched = corrupted + share * (clean - corrupted)
        if batch > 1:
            patched += 0.5 * (noise - noise.mean(0))
        high, low, value = (_difference(x.double(), right, wrong).mean() for x in (clean, corrupted, patched))
        given = (clean, corrupted, patched, right, wrong)
        cases.append((f"{batch} row{'s' * (batch > 1)}, {V} words", given, (value - low) / (high - low)))
    c, k, p, right, wrong = cases[3][1]
    cases.append(("the clean run prefers `wrong`: the scale runs downwards", (c, k, p, wrong, right), cases[3][2]))
    for case, (c, k, p, right, wrong), want in [*cases, hand]:
        got = judge.call(fn, c, k, p, right, wrong)
        batch = len(right)
        if isinstance(got, Tensor | np.ndarray) and batch > 1:
            known: dict[tuple[int, ...], str] = {(batch,): "a number for each row: the means over rows come first"}
            got = _shaped(judge, got, () if got.shape in known else got.shape, known)
        got = _number(judge, got, "the share")
        mistakes = functools.partial(_restored_mistakes, c.double(), k.double(), p.double(), right, wrong)
        _agree(judge, got, want, case, mistakes)


# 8.3 -------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=300)
def _wrong_sweeps(task: _Task) -> Named:
    cfg, cells, (low, high) = task.model.cfg, _each_head(task.model), _both_ends(task)
    logits = _with_heads(task, cells)
    value = _difference(logits[:, :, -1], task.right, task.wrong)
    raw, share, noised = value.mean(-1).reshape(cfg.n_layers, -1), _shares(task, cells), _shares(task.turned(), cells)
    ratios, ends = (value - low) / (high - low), [end.mean() for end in _both_ends(task, 0)]
    early = _difference(logits[:, :, 0], task.right, task.wrong).mean(-1).reshape(cfg.n_layers, -1)
    layer = [[(layer, h) for h in range(cfg.n_heads)] for [(layer, _)] in cells]
    number = [[(layer, head) for layer in range(cfg.n_layers)] for [(_, head)] in cells]
    in_layer = [[(layer, h) for h in range(head + 1)] for [(layer, head)] in cells]
    so_far = [[pair for [pair] in cells[: i + 1]] for i in range(len(cells))]
    late = "every entry is the last head's of its layer: a function defined in a loop looks `head` up when it runs"
    noising = "this is noising, a corrupted head in the clean run: denoising runs on `corrupted` with the clean z"
    source = "does the hook write into z, or return the new tensor, and is the source the clean run?"
    return {
        f"nothing was changed: {source}": 0 * share,
        noising: 1 - noised,
        f"{noising}; it tells what is lost": noised,
        "the scale is turned round: the corrupted run is 0 and the clean run 1": 1 - share,
        "it is cut off at 0 and 1: a head may do harm, or overshoot": share.clamp(0, 1),
        "only the last position is patched: take all": _shares(task, cells, slice(-1, None)),
        "the position that is read is the first one, not the last": (early - ends[0]) / (ends[1] - ends[0]),
        "all heads of the layer are patched: choose one on the axis of heads": _shares(task, layer),
        "patches add up from head to head of a layer: each is to be alone": _shares(task, in_layer),
        "patches add up from head to head and layer to layer: each is to be alone": _shares(task, so_far),
        "all heads of this number, in every layer, are patched at once: take one": _shares(task, number),
        late: share[:, -1:].expand_as(share),
        "these are logit differences: put them on the scale from 0 to 1": raw,
        "divided by the clean value alone": (raw - low.mean()) / high.mean(),
        "this is the change in logits: divide it by clean minus corrupted": raw - low.mean(),
        "this is a mean of ratios: take the means over rows first": ratios.mean(-1).reshape(share.shape),
    }


@functools.cache
def _wired(kind: str) -> _Task:
    """A model wired by hand, a clean and a corrupted prompt, and the words that count."""
    model = {"OR": gate_model(2, 1), "AND": gate_model(2, 2), "induction": induction_model()}[kind].model
    words = ("abca", "dbca", "b", "c") if kind == "induction" else ("11=", "00=", ["yes"], ["no"])
    ids = [torch.tensor([model.tokenizer.id(word) for word in text]) for text in words]
    return _Task(model, *(F.pad(row, (1, 0), value=model.tokenizer.bos)[None] for row in ids[:2]), *ids[2:])


def _table(judge: Judge, got: Any, task: _Task) -> Tensor:
    shape = (task.model.cfg.n_layers, task.model.cfg.n_heads)
    known: dict[tuple[int, ...], str] = {
        shape[::-1]: "transposed: layers come first, then heads",
        (shape[0] * shape[1],): "one row for each layer: [n_layers, n_heads]",
        (*shape, len(task.clean)): "a number for each row: take the mean over rows",
    }
    return _shaped(judge, got, shape, {k: text for k, text in known.items() if k != shape})


@functools.lru_cache(maxsize=50)
def _tasks(seed: int) -> list[tuple[_Task, Tensor]]:
    judge, linear = Judge("", "", seed), {"normalization_type": None, "attn_only": True, "d_mlp": 0}
    tasks = [
        _task(judge, 3, 6, n_layers=1, n_heads=2),
        _edgy(_task(judge, 1, 5, n_layers=3, n_heads=2, d_head=7, d_model=17)),
        _task(judge, 2, 9),
        _task(judge, 4, 7, n_heads=5, d_head=3, **linear),
    ]
    tasks[2] = tasks[2]._replace(right=tasks[2].wrong, wrong=tasks[2].right)  # its scale runs downwards
    return [(task, _shares(task)) for task in tasks]


@exercise("A sweep: where is it, and when?")
def head_sweep(fn: Any, judge: Judge) -> None:
    found = _tasks(judge.generator.initial_seed())[:3]
    cases = [(f"a random model, {len(task.clean)} rows", task, want) for task, want in found]
    cases += [("an OR by hand: either head restores all", _wired("OR"), torch.tensor([[1, 1, 0]]))]
    cases += [("an AND by hand: no head alone restores anything", _wired("AND"), torch.tensor([[0, 0, 0]]))]
    both = "induction by hand: the previous-token head and the induction head each restore all"
    cases += [(both, _wired("induction"), torch.tensor([[0, 1, 0], [1, 0, 0]]))]
    for case, task, want in cases:
        got = _table(judge, _ask(judge, fn, task, *task[1:]), task)
        _agree(judge, got, want.double(), case, functools.partial(_wrong_sweeps, task))


# 8.4 -------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=300)
def _estimates(task: _Task) -> Tensor:
    """First-order estimates by finite differences, [layer, head]: how the metric begins to change along the way."""
    low, high = (end.mean() for end in _both_ends(task))
    cells, eps = _each_head(task.model), 1e-4
    logits = torch.cat([_with_heads(task, cells, step)[None, :, :, -1] for step in (eps, -eps)])
    up, down = _difference(logits, task.right, task.wrong).mean(-1)
    return ((up - down) / (2 * eps * (high - low))).reshape(task.model.cfg.n_layers, -1)


def _gradients(task: _Task, tokens: Tensor) -> list[Tensor]:
    """The metric's gradient by each layer's z in the run on `tokens`."""
    found: list[Tensor] = []

    def keep(name: str, x: Tensor) -> Tensor:
        if name.endswith("hook_z"):
            x = x.requires_grad_()
            found.append(x)
        return x

    with torch.enable_grad():
        logits = _run(task.model, tokens, keep)[:, -1]
        return list(torch.autograd.grad(_difference(logits, task.right, task.wrong).mean(), found))


@functools.lru_cache(maxsize=300)
def _wrong_estimates(task: _Task) -> Named:
    low, high = (end.mean() for end in _both_ends(task))
    z = [[x for name, x in _activations(task.model, tokens).items() if name.endswith("z")] for tokens in task[1:3]]
    change = [a - b for a, b in zip(*z, strict=True)]
    here, there = _gradients(task, task.corrupted), _gradients(task, task.clean)
    batch, n, d, length = *task.clean.shape, task.model.cfg.d_head, high - low

    def table(entry: Callable[[Tensor, Tensor], Tensor], x: list[Tensor] = change, g: list[Tensor] = here) -> Tensor:
        return torch.stack([entry(*pair) for pair in zip(x, g, strict=True)]) / length

    def product(x: Tensor, g: Tensor) -> Tensor:
        return (x * g).sum(dim=(0, 1, 3))

    def summed_first(dim: int) -> Tensor:
        return table(lambda x, g: product(x.sum(dim, keepdim=True), g.sum(dim, keepdim=True)))

    right, at_clean = table(product), table(product, g=there)
    exact = "these are the exact values of 8.3, from a run for each head: here one gradient gives an estimate"
    take = "the gradient is that at the clean run: take it in the corrupted run, where z begins"
    rows, entry = "each row's difference meets its own gradient", "multiply entry by entry, then sum"
    return {
        exact: _shares(task),
        take: at_clean,
        "the sign: it is clean minus corrupted, in z as in the metric": -right,
        "not divided by the metric's difference between the clean and the corrupted run": right * length,
        "divided by the clean metric alone: the scale is clean minus corrupted": right * length / high,
        "divided by the number of rows twice: the metric is a mean already, so sum over rows": right / batch,
        "this is a mean over rows, positions and dimensions: sum": right / (batch * n * d),
        "these are absolute values: an estimate has a sign": right.abs(),
        "absolute values were summed: an estimate has a sign": table(lambda x, g: product(x.abs(), g.abs())),
        f"summed over d_head before multiplying: {entry}": summed_first(3),
        f"averaged over rows before multiplying: {rows}": summed_first(0) / batch,
        "only the last position counts: sum over all": table(lambda x, g: product(x[:, -1:], g[:, -1:])),
        "this is the gradient alone: multiply it by clean minus corrupted z": table(lambda x, g: g.sum(dim=(0, 1, 3))),
    }


@exercise("Patching by gradient")
def attribution(fn: Any, judge: Judge) -> None:
    for task, _ in _tasks(judge.generator.initial_seed()):
        want = _estimates(task)
        got = _table(judge, _ask(judge, fn, task, *task[1:]), task)
        _agree(judge, got, want, f"a random model, {len(task.clean)} rows", functools.partial(_wrong_estimates, task))


# 8.5 -------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=300)
def _wrong_together(task: _Task, heads: Heads) -> Named:
    cfg, layers, last = task.model.cfg, [layer for layer, _ in heads], heads[-1:]
    bug = "this is still the function with the bug: a hook looks `head` up when it runs, and finds the last one's"
    own = "keep each head with its own layer"
    one = "one head in each layer is patched"
    cells: dict[str, Heads] = {
        "nothing was changed, the logits are the corrupted run's": [],
        "only the last head is patched": last,
        "only the first head is patched": heads[:1],
        bug: [(layer, last[0][1]) for layer in layers] if heads else [],
        f"{one}, the last one named: a layer may have several": list(dict(heads).items()),
        f"{one}, the first one named: a layer may have several": list(dict(reversed(heads)).items()),
        "all heads of these layers are patched": list(itertools.product(set(layers), range(cfg.n_heads))),
        f"layers were sorted, heads were not: {own}": list(zip(sorted(layers), (h for _, h in heads), strict=True)),
    }
    return {
        **{text: _with_heads(task, [cell])[0] for text, cell in cells.items()},
        "this is noising, corrupted heads in the clean run": _with_heads(task.turned(), [heads])[0],
        "only the last position is patched: take all": _with_heads(task, [heads], at=slice(-1, None))[0],
        "the logits are the clean run's": _with_heads(task.turned(), [[]])[0],
    }


@functools.lru_cache(maxsize=50)
def _joint(seed: int) -> list[tuple[str, _Task, Heads, Tensor]]:
    judge = Judge("", "", seed)
    big, small = _task(judge, 3, 6, n_heads=5), _task(judge, 1, 5, n_heads=3, attn_only=True, d_mlp=0)
    a, b, c, d, _ = torch.randperm(5, generator=judge.generator).tolist()
    i, j = torch.randperm(2, generator=judge.generator).tolist()
    cases: list[tuple[str, _Task, Heads]] = [
        ("a single head", big, ((i, a),)),
        ("four heads, three of one layer", big, ((j, d), (j, a), (i, c), (j, b))),
        ("three heads, from the top down", big, ((1, a), (1, b), (0, c))),
        ("one row", small, ((0, 2), (1, 1), (1, 0))),
        ("no head at all: nothing changes", small, ()),
    ]
    return [(case, task, heads, _with_heads(task, [heads])[0]) for case, task, heads in cases]


@exercise("Sufficient, or necessary?")
def together(fn: Any, judge: Judge) -> None:
    for case, task, heads, want in _joint(judge.generator.initial_seed()):
        got = _ask(judge, fn, task, task.clean, task.corrupted, list(heads), seen=task.model.cfg.attn_only)
        _agree(judge, got, want, case, functools.partial(_wrong_together, task, heads))
    gate = _wired("AND")
    got = judge.tensor(_ask(judge, fn, gate, *gate[1:3], [(0, 0), (0, 1)]), (1, 4, gate.model.cfg.d_vocab))
    claim = "both heads of an AND wired by hand: the gate opens, and yes leads no by 5"
    _agree(judge, _difference(got[:, -1], *gate[3:]), torch.tensor([5.0]), claim, dict, "one head alone opens nothing")


# 8.6 -------------------------------------------------------------------------------------------
def _why_no_vote(by_count: list[float], inputs: int, needed: int) -> str:
    """What an output looks like that is wrong; by_count is the mean output for each number of ones."""
    off, cap = "the threshold is off by one", "nothing caps it: the second neuron must take away what is above 1"
    rules: dict[str, Callable[[int], float]] = {
        "it is 1 for fewer than `needed`: turned round": lambda c: c < needed,
        f"{off}: more than `needed` are asked for": lambda c: c > needed,
        f"{off}: one fewer than `needed` will do": lambda c: c >= needed - 1,
        "this is an AND: it wants all inputs, whatever `needed` is": lambda c: c == inputs,
        "this is an OR: one input will do, whatever `needed` is": lambda c: c >= 1,
        cap: lambda c: max(0, c - needed + 1),
        f"{cap}; and {off}": lambda c: max(0, c - needed),
        "the second neuron adds, and should take away": lambda c: max(0, c - needed + 1) + max(0, c - needed),
        "it is always 0: do the neurons fire, and with different biases?": lambda c: 0,
        "this is the number of ones: a bias sets where a neuron begins to fire": lambda c: c,
    }
    fits = {text: all(abs(rule(c) - got) < 0.02 for c, got in enumerate(by_count)) for text, rule in rules.items()}
    return next((text for text, fit in fits.items() if fit), "")


@exercise("Sufficient, or necessary?")
def vote(fn: Any, judge: Judge) -> None:
    for inputs, needed in [(5, 3), *((n, k) for n in range(1, 7) for k in range(1, n + 1)), (9, 5)]:
        W = _matrices(judge, judge.call(fn, inputs, needed), {"W_in": (inputs, 2), "b_in": (2,), "W_out": (2,)})
        x = torch.tensor(list(itertools.product((0.0, 1.0), repeat=inputs))).double()
        got = torch.relu(x @ W["W_in"] + W["b_in"]) @ W["W_out"]
        ones = x.sum(1).long()
        want = (ones >= needed).double()
        if torch.allclose(got, want, atol=1e-4):
            judge.that(True, "a vote")
            continue
        groups = [got[ones == count] for count in range(inputs + 1)]
        uneven = any(float(group.max() - group.min()) > 1e-3 for group in groups)
        worst = int((got - want).abs().argmax())
        likely = "it matters which bits are 1, not only how many: every bit has the same weight" if uneven else ""
        likely = likely or _why_no_vote([float(group.mean()) for group in groups], inputs, needed)
        row = "".join(str(int(bit)) for bit in x[worst])
        seen, expected = f"{float(got[worst]):.4g} for {row}", f"{float(want[worst]):.4g}"
        judge.fail(f"a vote of {inputs} inputs with {needed} needed", seen=seen, expected=expected, likely=likely)


def _share(task: _Task, patched: Tensor, of: str) -> float:
    """The restored share of the right token's probability, or of the logit difference."""
    rows, values = torch.arange(len(task.right)), []
    for x in (_plain(task.model, task.corrupted), _plain(task.model, task.clean), patched):
        chance = x[:, -1].softmax(-1)[rows, task.right]
        value = chance if of == "probability" else _difference(x[:, -1], task.right, task.wrong)
        values.append(float(value.mean()))
    return (values[2] - values[0]) / (values[1] - values[0])


def _rounded(got: Sequence[float], slip: Sequence[float]) -> bool:
    """Whether these are the slip's numbers, all of them, or rounded to two, three or four digits."""
    pairs = list(zip(got, slip, strict=True))
    return any(all(abs(a - round(b, digits)) < 5e-5 for a, b in pairs) for digits in (2, 3, 4, 9))


# 8.7 -------------------------------------------------------------------------------------------
@functools.cache
def _hidden(own: bool, head: int, seed: int = 1, of: str = "probability", turned: bool = False) -> list[float]:
    """What a head of layer 0 restores from other_cue and other_answer, in the exercise's rows or in others."""
    V, rng, generator = len(tinyworld.TOKENIZER) - 1, np.random.default_rng(8), torch.Generator().manual_seed(0)
    draws = [rng.permutation(V) if own else torch.randperm(V, generator=generator) for _ in range(40 + 20 * own)]
    words = torch.stack([torch.as_tensor(draw[:13]) for draw in draws]) + 1
    rows = torch.cat([torch.zeros(len(words), 1, dtype=torch.int64), words[:, :12], words[:, :8]], dim=1)
    found = []
    for position in (8, 9):
        corrupted = rows.clone()
        corrupted[:, position] = words[:, 12]
        task = _Task(load("tinyworld", seed=seed), rows, corrupted, words[:, 8], words[:, 12])
        task = task.turned() if turned else task
        found.append(_share(task, _with_heads(task, [[(0, head)]])[0], of))
    return found


@functools.cache
def _hidden_slips(head: int) -> dict[str, list[float]]:
    """What slips lead to with this head, on the exercise's own rows."""
    noising = "this is noising: `clean` comes first, and the patched run is on corrupted rows"
    lost = _hidden(False, head, turned=True)
    return {
        noising: lost,
        f"{noising} (and what is left)": [1 - x for x in lost],
        "the metric is the logit difference: take `probability(right)`": _hidden(False, head, of="logits"),
        "this is the course model of seed 0: load it with seed=1": _hidden(False, head, seed=0),
    }


@exercise("Which corruption?")
def hides(answer: Any, judge: Judge) -> None:
    number, cue, other = _numbers(judge, answer, "head", "other_cue", "other_answer").values()
    judge.that(number in range(6), "heads go from 0 to 5", seen=number, likely="one head's number, counted from 0")
    head, seen = int(number), f"L0H{int(number)}, {cue:.3f} and {other:.3f}"
    judge.that(max(abs(cue), abs(other)) < 5, "shares go from about 0 to 1", seen=seen)
    truth = [_hidden(True, h) for h in range(6)]
    best = max(range(6), key=lambda h: truth[h])
    likely = "take the argmax over heads of layer 0, of the sweep from other_cue"
    if 0.03 < cue < 0.2:
        likely = "that looks like a head of layer 1: layer 0 is asked for, the first row of the sweep"
    claim, most = "the head of layer 0 that restores most from other_cue", f"there is one with {truth[best][0]:.2f}"
    share = f"L0H{head} restores {truth[head][0]:.2f} from other_cue"
    judge.that(head == best, claim, seen=share, expected=most, likely=likely)
    for text, slip in _hidden_slips(best).items():
        near = _rounded((cue, other), slip) and not _rounded((cue, other), _hidden(False, best))
        judge.that(not near, "what the head restores", seen=seen, likely=text)
    for name, got, want, off in zip(("cue", "answer"), (cue, other), truth[best], (0.12, 0.05), strict=True):
        likely = "denoise: clean is `rows`, z at all positions, the metric probability(right)"
        if cue < 0.1 and other > 0.8:
            likely = "other_cue and other_answer are exchanged"
        elif abs(1 - cue - truth[best][0]) < 0.12 and abs(1 - other - truth[best][1]) < 0.05:
            likely = "this is what is left missing, 1 minus the share"
        elif name == "cue" and abs(got - _hidden(True, best, seed=0)[0]) < 0.17:
            likely = "this looks like the course model of seed 0: load it with seed=1"
        claim, expected = f"what L0H{best} restores from other_{name}", f"{want:.2f}, give or take {off}"
        judge.that(abs(got - want) < off, claim, seen=got, expected=expected, likely=likely)


# 8.8 -------------------------------------------------------------------------------------------
@functools.cache
def _halves(own: bool, position: int = 1, seed: int = 0, turned: bool = False) -> tuple[float, float]:
    """What one word restores of the logit difference and of the probability, in the exercise's facts or in all."""
    facts, rng, ids = [f for f in tinyworld.FACTS if f.relation == "home"], random.Random(0), tinyworld.TOKENIZER.id
    drawn = itertools.permutations(facts, 2) if own else (rng.sample(facts, 2) for _ in itertools.count())
    fitting = ((a, b) for a, b in drawn if a.answer != b.answer and not set(a.subject) & set(b.subject))
    pairs = list(itertools.islice(fitting, None if own else 50))
    pairs = pairs[:: max(1, len(pairs) // 500)]
    tokens = [torch.tensor([[0, *map(ids, (*pair[i].subject, "lives", "in"))] for pair in pairs]) for i in (0, 1)]
    answers = [torch.tensor([ids(pair[i].answer) for pair in pairs]) for i in (0, 1)]
    task = _Task(load("tinyworld", seed=seed), *tokens, *answers)
    task = task.turned() if turned else task
    patched = _patched(task, "blocks.0.hook_resid_pre", (ALL, position))
    return _share(task, patched, "logits"), _share(task, patched, "probability")


@functools.cache
def _half_slips() -> dict[str, tuple[float, float]]:
    """What slips lead to on the exercise's own facts."""
    noising = "this is noising: `clean` comes first, and the patched run is that on `corrupted`"
    lost = _halves(False, turned=True)
    return {
        "this is position 2, the last name, or noising at position 1, which leaves the same": _halves(False, 2),
        noising: lost,
        "this is the course model of seed 1: take that of seed 0": _halves(False, seed=1),
        "this is position 0, the beginning, which both share": (0.0, 0.0),
        "both names were restored: position 1 alone is asked for": (1.0, 1.0),
    }


@exercise("Which number?")
def half(answer: Any, judge: Judge) -> None:
    difference, chance = _numbers(judge, answer, "logit_difference", "probability").values()
    seen = f"{difference:.3f} of the logit difference, {chance:.3f} of the probability"
    for text, slip in _half_slips().items():
        near = _rounded((difference, chance), slip) and not _rounded((difference, chance), _halves(False))
        judge.that(not near, "what the first name restores", seen=seen, likely=text)
    off_scale = "this is not on the scale from 0 to 1: what `patched` returns is"
    judge.that(max(abs(difference), abs(chance)) < 1.5, "restored shares", seen=seen, likely=off_scale)
    first, second = _halves(True)
    likely = "denoise the stream before block 0 at position 1, on the scale from 0 (corrupted) to 1 (clean)"
    alike = abs(difference - second) < 0.12, abs(chance - first) < 0.12
    if all(alike):
        likely = "the two metrics are exchanged"
    elif any(alike):
        likely = "the same metric twice: one is logit_difference(right, wrong), the other probability(right)"
    for name, got, want, off in (("logit difference", difference, first, 0.11), ("probability", chance, second, 0.12)):
        expected = f"{want:.2f}, give or take {off}"
        judge.that(abs(got - want) < off, f"the first name's {name}", seen=got, expected=expected, likely=likely)


# 8.9 -------------------------------------------------------------------------------------------

STATEMENTS = {
    "a": (False, "it suffices; another head might have done as well, so that nothing is lost without this one"),
    "b": (True, "put in place alone, it brings the answer back: that is what sufficing means, for these prompts"),
    "c": (True, "that is an OR: each stands in for the other, so breaking one of them shows nothing"),
    "d": (True, "what is put in place is what was there: there is nothing to restore, however needed the head is"),
    "e": (False, "in a vote of four out of six, one head more or less changes nothing in either direction"),
    "f": (True, "from there on the two runs are the same: the blocks above read nothing but the stream"),
    "g": (True, "a linear function is its own first-order estimate"),
    "h": (False, "activations have means far from zero, and later layers count on them: zero is a message too"),
    "i": (False, "what one part restores, another may pull back; and a part that works against the answer is negative"),
}


@exercise("Sufficient, or necessary?")
def statements(answer: Any, judge: Judge) -> None:
    judge.judgements(answer, STATEMENTS)
