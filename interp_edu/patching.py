"""Activation patching: run the model on one prompt with a few activations of another, and see what changes.

A clean and a corrupted prompt of one length differ in what is to be explained. Denoising patches clean activations into
the corrupted run and asks what suffices to bring the answer back; noising does the reverse and asks what is needed (Vig
et al. 2020; Meng et al. 2022; Zhang and Nanda 2024). Ablation is noising with activations of no prompt in particular.

Three ways to one number, each a check of the next: `Patching.patched` runs the model once, with ordinary hooks; `sweep`
runs many patches at once and computes only tokens that they change; `attribution` estimates all from one gradient.
"""

import bisect
import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_edu.hooks import Cache, HookPoint, hook_name, hooked, run_with_cache
from interp_edu.metrics import Metric, indices
from interp_edu.transformer import Parameters, Transformer, attention, normalized, to_heads, weights

Live = Bool[Tensor, "_ pos"]  # a row for each run

# What can be swept, in the order in which a layer computes it; from z on, it concerns no later position in its layer.
SITES = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "post", "mlp_out", "resid_post")
UNIT = dict.fromkeys(("q", "k", "v", "attn_scores", "pattern", "z"), "head") | dict.fromkeys(("pre", "post"), "neuron")


def by_unit(name: str, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch pos unit feature"]:
    """A view of any activation with its axes in one order; what has neither heads nor neurons is a single unit."""
    site = name.rpartition("hook_")[2]
    if site in ("pattern", "attn_scores"):
        return x.transpose(1, 2)  # a pattern's positions are its queries', its features the keys
    return x if UNIT.get(site) == "head" else x[..., None] if site in UNIT else x[:, :, None]


@dataclass(frozen=True)
class Patch:
    """Puts the source's activation in place, at some positions (None: all), of some heads or neurons (None: all)."""

    name: str
    positions: Sequence[int] | None = None
    units: Sequence[int] | None = None


@dataclass(frozen=True)
class Sweep:
    """A number for each patch, with named axes: `values` go from 0, corrupted, to 1, clean; `raw` is the metric itself.
    `base` is the value without any patch: 0 for denoising, 1 for noising.

    >>> sweep.axes, sweep.values.shape
    (['layer', 'head'], torch.Size([12, 12]))
    >>> sweep.at(layer=9, head=6), sweep.at(head=6).shape, sweep.values[9, 6]
    """

    values: Float[Tensor, "..."]
    raw: Float[Tensor, "..."]
    axes: list[str]
    labels: dict[str, list[int]]
    base: float

    def at(self, **labels: int) -> Tensor:
        """The values at some labels. Raises ValueError for an axis or a label that is not there."""
        if not set(labels) <= set(self.axes) or any(i not in self.labels[axis] for axis, i in labels.items()):
            raise ValueError(f"there is no {labels} in this sweep of {self.labels}")
        return self.values[tuple(self.labels[a].index(labels[a]) if a in labels else slice(None) for a in self.axes)]

    def top(self, n: int = 5) -> list[tuple[tuple[int, ...], float]]:
        """The n entries furthest from the run without patch, as (labels in the order of `axes`, value)."""
        order = (self.values - self.base).abs().flatten().argsort(descending=True, stable=True)[:n].tolist()
        labels = list(itertools.product(*(self.labels[axis] for axis in self.axes)))
        return [(labels[i], self.values.flatten()[i].item()) for i in order]


def mean_activations(model: Transformer, tokens: Int[Tensor, "batch pos"]) -> Cache:
    """All activations averaged over rows, position by position, [1, ...]: a `source` for mean ablation."""
    with torch.no_grad():
        return Cache({name: x.mean(dim=0, keepdim=True) for name, x in run_with_cache(model, tokens)[1].items()})


def noised(
    model: Transformer,
    tokens: Int[Tensor, "batch pos"],
    where: Bool[Tensor, "batch pos"],
    *,
    scale: float = 3.0,
    generator: torch.Generator | None = None,
) -> tuple[Transformer, Int[Tensor, "batch pos"]]:
    """Corruption by noise: the tokens at `where` become words that nobody knows, their embeddings the old ones plus
    Gaussian noise of `scale` standard deviations of W_E (Meng et al. 2022, who take 3).

    Returns a model that has the new words besides its own and shares all other weights, and the corrupted tokens: both
    runs of an experiment, and every sweep, are then runs of this model.
    """
    W_E = weights(model.embed)["W_E"].detach()
    known = W_E[tokens[where]]
    new = known + scale * W_E.std() * torch.randn(known.shape, generator=generator)
    other = copy.copy(model)
    other.attached = {}  # hooks are its own
    other._modules = {**model._modules, "embed": Parameters(W_E=torch.cat([W_E, new])).requires_grad_(False)}
    other.cfg = replace(model.cfg, d_vocab=len(W_E) + len(new))
    return other, tokens.masked_scatter(where, torch.arange(len(W_E), len(W_E) + len(new)))


class Patching:
    """A clean and a corrupted prompt, or several pairs row by row, and a metric that tells them apart.

    >>> patching = Patching(model, clean, corrupted, logit_difference(right, wrong))
    >>> patching.sweep("resid_pre").values.shape  # layer, pos
    torch.Size([12, 15])
    >>> patching.sweep("z").top(3)  # layer, head; all positions together
    >>> patching.sweep("z", ("head", "pos"), layer=[9])
    >>> patching.sweep("mlp_out", window=5)  # five neighbouring layers together (Meng et al. 2022)
    >>> patching.attribution("z")  # the same, as a first-order estimate
    >>> patching.patched([Patch("blocks.9.attn.hook_z", positions=[14], units=[6, 9])])  # anything

    Both runs are cached here: if weights change, make a new experiment. Values are means over rows. With `denoise`
    clean activations go into the corrupted run, else corrupted ones into the clean. `source` is what to put there
    instead: "zero", other prompts' tokens (resample ablation), or activations by name, as from `mean_activations`.
    `batch_size` is how many rows are run at once at most, which bounds the memory.
    Raises ValueError for shapes that differ, hooks on the model, a metric that is not finite or the same for both.
    """

    def __init__(
        self,
        model: Transformer,
        clean: Tensor,
        corrupted: Tensor,
        metric: Metric,
        *,
        denoise: bool = True,
        source: Tensor | Mapping[str, Tensor] | str | None = None,
        batch_size: int = 256,
    ):
        for name, tokens in {"corrupted": corrupted, "source": source}.items():
            if isinstance(tokens, Tensor) and (tokens.ndim != 2 or tokens.shape != clean.shape):
                raise ValueError(
                    f"clean has shape {list(clean.shape)}, {name} {list(tokens.shape)}: both must be [batch, pos], as "
                    "position i is patched into position i; choose prompts with the same number of tokens, row by row"
                )
        if batch_size < len(clean):
            raise ValueError(f"batch_size must be at least {len(clean)}, the number of rows, not {batch_size}")
        self.model, self.metric, self.batch_size = model, metric, batch_size
        self.tokens, other = (corrupted, clean) if denoise else (clean, corrupted)
        (self.base, here), (self.source, there) = self._cached(self.tokens), self._cached(other)
        self.clean, self.corrupted = (there, here) if denoise else (here, there)
        self.unpatched = 0.0 if denoise else 1.0
        if abs(self.clean - self.corrupted) <= 1e-6 * max(abs(self.clean), abs(self.corrupted)):
            raise ValueError(
                f"the metric is {self.clean:.6g} for both the clean and the corrupted run, so there is no scale from 0 "
                "to 1: is its position the right one, and do the prompts differ before it?"
            )
        if isinstance(source, Tensor):
            self.source, _ = self._cached(other := source)
        elif source == "zero":
            self.source = Cache({name: x.new_zeros(()).expand_as(x) for name, x in self.base.items()})
        elif isinstance(source, Mapping):
            self.source = Cache({name: x.expand_as(self.base[name]) for name, x in source.items()})
        elif source is not None:
            raise ValueError(f"source must be 'zero', tokens, or activations by hook name, not {source!r}")
        # Before the first token that differs, two runs are the same and there is nothing to patch.
        differs = (self.tokens != other).any(dim=0).long()
        self.first = int(differs.argmax()) if source is None or isinstance(source, Tensor) else 0
        # Patches enter a fast run at twice their layer, or one step later if they come after attention.
        at = {hook_name(site, i): 2 * i + (site not in SITES[:4]) for site in SITES for i in range(model.cfg.n_layers)}
        self.entries = {name: step for name, step in at.items() if name in self.base}

    def patched(self, patches: Iterable[Patch]) -> float:
        """The normalised metric after all these patches together: one run with ordinary hooks, nothing clever.

        Any hook point that was cached will do, and hooks that are attached to the model take effect.
        """

        def hook(x: Tensor, point: HookPoint, positions: list[int], units: list[int]) -> None:
            at = torch.tensor(positions)[:, None], torch.tensor(units)
            by_unit(point.name, x)[:, *at] = by_unit(point.name, self.source[point.name])[:, *at]

        at = [self._resolved(patch) for patch in patches]
        with torch.no_grad(), hooked(self.model, [(n, partial(hook, positions=p, units=u)) for n, p, u in at]):
            return self._normalised(_finite(self.metric(self.model(self.tokens)))).item()

    def sweep(self, site: str, axes: Iterable[str] = (), *, window: int = 1, **only: Iterable[int]) -> Sweep:
        """A patch for every combination along the axes; along axes that are not named, all is patched together.

        `site`, one of SITES, has the axes "layer" and "pos", some have "head" or "neuron"; the default is layer and its
        own, or else pos. `window` is how many neighbouring layers are patched together, centred on the labelled one.
        An axis, named or not, can be cut down: `layer=[9, 10], pos=[-1]`. Raises ValueError for what is not there.
        """
        axes, labels, groups = self._grid(site, axes, window, only)
        cells = [[Patch(hook_name(site, i), p, u) for i in near] for near, p, u in itertools.product(*groups)]
        return self._named(self.many(cells), axes, labels)

    def attribution(self, site: str, axes: Iterable[str] = (), *, window: int = 1, **only: Iterable[int]) -> Sweep:
        """The first-order estimate of the `sweep` with the same arguments: (source - base) . gradient at the base run.

        One forward and one backward pass serve all sites (Nanda 2023; Syed et al. 2023). Exact where the metric is
        linear in the site, worst where attention or LayerNorm saturates; layers together are the sum of each alone.
        """
        axes, labels, groups = self._grid(site, axes, window, only)
        table = torch.stack([self.first_order[hook_name(site, layer)] for layer in range(self.model.cfg.n_layers)])
        for dim, together in enumerate(groups):
            owner, index = torch.tensor([(i, j) for i, group in enumerate(together) for j in group]).T
            empty = table.new_zeros(*table.shape[:dim], len(together), *table.shape[dim + 1 :])
            table = empty.index_add(dim, owner, table.index_select(dim, index))
        return self._named(self.unpatched + table / (self.clean - self.corrupted), axes, labels)

    @cached_property
    def first_order(self) -> dict[str, Float[Tensor, "pos unit"]]:
        """By hook name what each position and unit contributes to first order, on the metric's own scale."""
        self._no_hooks()
        names = [name for name in self.entries if name in self.source]
        with torch.enable_grad(), hooked(self.model, [("hook_embed", lambda x, hook: x.requires_grad_())]):
            stream, cache = run_with_cache(self.model, self.tokens, names, stop_at_layer=self.model.cfg.n_layers)
            measured = self._measured(self.metric.read(stream)[None])[0]
            gradients = zip(names, torch.autograd.grad(measured, [cache[name] for name in names]), strict=True)
        return {name: by_unit(name, (self.source[name] - self.base[name]) * g).sum(dim=(0, 3)) for name, g in gradients}

    @torch.no_grad()
    def many(self, cells: Iterable[Iterable[Patch]]) -> Float[Tensor, "cell"]:
        """`patched` for each list of patches, all of them at SITES, many rows to a forward pass."""
        self._no_hooks()
        plans = [[self._resolved(patch, self.first) for patch in cell] for cell in cells]
        for name in {name for plan in plans for name, *_ in plan} - set(self.entries):
            raise ValueError(f"{name} is none of {', '.join(SITES)} in some layer: only `patched` takes it")
        entry = [min((self.entries[name] for name, positions, _ in plan if positions), default=-1) for plan in plans]
        order = sorted((i for i in range(len(plans)) if entry[i] >= 0), key=lambda i: entry[i])
        values = self.base["hook_embed"].new_full((len(plans),), self.clean if self.unpatched else self.corrupted)
        at_once = self.batch_size // len(self.tokens)
        for start in range(0, len(order), at_once):  # late ones with late ones: their early layers are skipped
            some = order[start : start + at_once]
            values[some] = self._measured(self._run([plans[i] for i in some], [entry[i] for i in some]))
        return _finite(self._normalised(values))

    def _run(self, plans: Sequence[Any], entries: Sequence[int]) -> Float[Tensor, "cell batch d_model"]:
        """The streams that the metric reads, under lists of resolved patches in the order of their entries.

        Row r is pair r % batch under list r // batch. `live` marks the tokens that may differ from the base run; the
        flat x and z hold them alone, row by row. All other tokens' queries, keys and values are the base run's.
        """
        (batch, n), cfg, base = self.tokens.shape, self.model.cfg, self.base
        writes: dict[str, list[tuple[int, ...]]] = {}
        touched = torch.zeros(len(plans), n, dtype=torch.bool)
        for cell, plan in enumerate(plans):
            for name, positions, units in plan:
                writes.setdefault(name, []).extend(itertools.product([cell], positions, units))
                touched[cell, positions] = True
        put = partial(_put, writes, self.source, batch)
        touched = touched.repeat_interleave(batch, dim=0)
        later = touched.cumsum(dim=1) > 0  # what may attend to a touched token
        read = self.metric.read(torch.eye(n).expand(batch, n, n)).bool().repeat(len(plans), 1)
        live, x = touched[:0], base["hook_embed"][0, :0]
        for layer in range(entries[0] // 2, cfg.n_layers):
            block: Any = self.model.blocks[layer]
            at, p = f"blocks.{layer}.", {name: weights(part) for name, part in block.named_children()}
            pre, attn, sides = base["resid_pre", layer], p["attn"], [f"{at}attn.hook_{side}" for side in "qkv"]
            # Up to attention, only live tokens have anything new to say.
            now = torch.cat([live, touched[len(live) : batch * bisect.bisect_right(entries, 2 * layer)]])
            every = torch.ones_like(now)
            x = put(at + "hook_resid_pre", carry(x, live, now, pre), now)
            inputs = normalized(x, p["ln1"], cfg)[None]
            new = torch.stack([to_heads(inputs, attn[f"W_{side}"], attn[f"b_{side}"])[0] for side in "QKV"], dim=1)
            qkv = carry(new, now, every, torch.stack([base[name] for name in sides], dim=2)).unbind(dim=1)
            q, k, v = (put(name, y, every).unflatten(0, now.shape) for name, y in zip(sides, qkv, strict=True))
            z = attention(q, k, v).flatten(0, 1)
            # From here on, all later tokens may; but of the last layer only what the metric reads is wanted.
            entered = batch * bisect.bisect_right(entries, 2 * layer + 1)
            live = torch.cat([later[: len(now)], touched[len(now) : entered]])
            live = live & read[:entered] if layer == cfg.n_layers - 1 else live
            z = put(at + "attn.hook_z", carry(z, every, live, base["z", layer]), live)
            out = F.linear(z.flatten(1), attn["W_O"].flatten(0, 1).mT, attn["b_O"])
            x = put(at + "hook_resid_mid", carry(x, now, live, pre) + put(at + "hook_attn_out", out, live), live)
            if not cfg.attn_only:
                mlp, inputs = p["mlp"], normalized(x, p["ln2"], cfg)
                post = put(at + "mlp.hook_post", block.act(F.linear(inputs, mlp["W_in"].mT, mlp["b_in"])), live)
                x = x + put(at + "hook_mlp_out", F.linear(post, mlp["W_out"].mT, mlp["b_out"]), live)
            x = put(at + "hook_resid_post", x, live)
        return carry(x, live, read, base["resid_post", cfg.n_layers - 1]).unflatten(0, (len(plans), batch))

    def _measured(self, x: Float[Tensor, "cell batch d_model"]) -> Float[Tensor, "cell"]:
        """The metric, from last streams: of the logits only those that it needs."""
        x, p = normalized(x, weights(self.model.ln_final), self.model.cfg), weights(self.model.unembed)
        if (choices := self.metric.choices) is None:
            return self.metric.of(F.linear(x, p["W_U"].mT, p["b_U"])).mean(dim=1)
        return self.metric.of((x[:, :, None] * p["W_U"].mT[choices]).sum(dim=3) + p["b_U"][choices]).mean(dim=1)

    def _cached(self, tokens: Int[Tensor, "batch pos"]) -> tuple[Cache, float]:
        self._no_hooks()
        with torch.no_grad():
            logits, cache = run_with_cache(self.model, tokens)
            return cache, _finite(self.metric(logits)).item()

    def _no_hooks(self) -> None:
        if names := ", ".join(self.model.attached):
            raise ValueError(f"hooks are attached at {names}, and would be ignored here: only `patched` heeds them")

    def _normalised(self, raw: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return (raw - self.corrupted) / (self.clean - self.corrupted)

    def _resolved(self, patch: Patch, first: int = 0) -> tuple[str, list[int], list[int]]:
        _, n, units, _ = by_unit(patch.name, self.base[patch.name]).shape
        positions = [p for p in indices(patch.positions, n, "position") if p >= first]
        return patch.name, positions, indices(patch.units, units, UNIT.get(patch.name.rpartition("_")[2], "unit"))

    def _grid(self, site: str, axes: Iterable[str], window: int, only: Any) -> tuple[list[str], Any, Any]:
        """A sweep's axes; labels of layers, positions and units; and of each of the three what is patched together."""
        if (name := hook_name(site, 0)) not in self.entries:
            here = ", ".join(site for site in SITES if hook_name(site, 0) in self.entries)
            raise ValueError(f"this model has no site {site!r} to sweep: choose one of {here}")
        n_layers, own = self.model.cfg.n_layers, UNIT.get(site, "unit")
        sizes = dict(zip(("layer", "pos", own), (n_layers, *by_unit(name, self.base[name]).shape[1:3]), strict=True))
        axes = list(axes) or ["layer", own if site in UNIT else "pos"]
        if not {*axes, *only} <= set(sizes) or len(set(axes)) < len(axes) or window < 1:
            raise ValueError(f"{site} has the axes {', '.join(sizes)}, once each, not {[*axes, *only]}; window >= 1")
        labels = {axis: indices(only.get(axis), size, axis) for axis, size in sizes.items()}
        groups = {axis: [[i] for i in indices] for axis, indices in labels.items()}
        groups["layer"] = [[*range(n_layers)[max(0, i - window // 2) : i + (window + 1) // 2]] for i in labels["layer"]]
        return axes, labels, [g if axis in axes else [sorted({*itertools.chain(*g)})] for axis, g in groups.items()]

    def _named(self, values: Float[Tensor, "..."], axes: list[str], labels: dict[str, list[int]]) -> Sweep:
        own = [axis for axis in labels if axis in axes]
        values = values.view([len(labels[axis]) for axis in own]).permute([own.index(axis) for axis in axes])
        raw = self.corrupted + values * (self.clean - self.corrupted)
        return Sweep(values, raw, axes, {axis: labels[axis] for axis in axes}, self.unpatched)


def carry(x: Float[Tensor, "token ..."], old: Live, new: Live, base: Float[Tensor, "batch pos ..."]) -> Tensor:
    """The activations of the tokens `new`: from x, which holds those of `old` row by row, or else from the base run."""
    n_base = base.shape[:2].numel()
    where = torch.arange(new.numel()) % n_base
    where[old.flatten().nonzero()[:, 0]] = torch.arange(n_base, n_base + len(x))
    return torch.cat([base.flatten(0, 1), x]).index_select(0, where[new.flatten()])


def _put(writes: Any, source: Cache, batch: int, name: str, x: Float[Tensor, "token ..."], live: Live) -> Tensor:
    """x, which holds the live tokens row by row, with what is patched here: (cell, position, unit) by hook name."""
    if name in writes:
        cell, pos, unit = torch.tensor(writes[name]).T.repeat_interleave(batch, dim=1)
        row = cell * batch + (pair := torch.arange(len(cell)) % batch)
        kept, token = live[row, pos], (live.flatten().cumsum(dim=0) - 1).view_as(live)[row, pos]
        by_unit(name, x[None])[0][token[kept], unit[kept]] = by_unit(name, source[name])[pair, pos, unit][kept]
    return x


def _finite(values: Float[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
    if not values.isfinite().all():
        raise ValueError("the metric is not finite: is something infinite or NaN in the weights, source or logits?")
    return values
