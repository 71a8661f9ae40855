"""Hooks: the named places of a forward pass where an activation can be read, replaced or recorded.

The names are TransformerLens's (Nanda and Bloom 2022): `blocks.3.hook_resid_pre`, `blocks.0.attn.hook_pattern`.
A model announces its names in `model.hook_names` and passes every activation through `HookPoints`; all
else is here: `hooked` attaches functions for as long as a `with` block lasts, `run_with_cache` records.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class HookPoint:
    """Where a hook is called; it is handed to the hook as its second argument."""

    name: str

    def layer(self) -> int:
        """The block's number. Raises ValueError outside of the blocks, as at `hook_embed`."""
        parts = self.name.split(".")
        if parts[0] != "blocks":
            raise ValueError(f"{self.name} belongs to no layer")
        return int(parts[1])


HookFunction = Callable[[Tensor, HookPoint], Tensor | None]
Names = str | Iterable[str] | Callable[[str], bool]


@runtime_checkable
class Hookable(Protocol):
    """What a model must have: its names (`costly` ones are computed only on demand) and what is attached now."""

    hook_names: tuple[str, ...]
    costly_hook_names: tuple[str, ...]
    attached: dict[str, list[HookFunction]]

    def run(self, inputs: Tensor, points: "HookPoints", start_at_layer: int, stop_at_layer: int | None) -> Tensor: ...


class HookPoints:
    """The hook points of one forward pass. `points(name, x)` returns x, or what the hooks made of it."""

    __slots__ = ("attached", "busy", "cache", "prefix", "record")

    def __init__(
        self,
        attached: dict[str, list[HookFunction]],
        cache: dict[str, Tensor] | None = None,
        record: frozenset[str] = frozenset(),
        prefix: str = "",
    ):
        self.attached, self.cache, self.record, self.prefix = attached, cache, record, prefix
        self.busy = bool(attached or record)

    def below(self, prefix: str) -> "HookPoints":
        """The points of a part of the model: names are then relative to it."""
        return HookPoints(self.attached, self.cache, self.record, self.prefix + prefix) if self.busy else self

    def used(self, name: str) -> bool:
        """Whether anybody reads or changes this activation."""
        return self.busy and ((name := self.prefix + name) in self.attached or name in self.record)

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if self.busy:
            name = self.prefix + name
            for hook in self.attached.get(name, ()):
                x = _apply(hook, x, name)
            if name in self.record:
                self.cache[name] = x  # type: ignore[index]  # who records brings a cache
        return x


def _apply(hook: HookFunction, x: Tensor, name: str) -> Tensor:
    given = x.clone()  # a hook may write into what it gets; other places may hold the same tensor
    value = hook(given, HookPoint(name))
    if value is None:
        return given
    if not isinstance(value, Tensor):
        raise TypeError(f"the hook at {name} returned {type(value).__name__}: return a tensor, or nothing")
    if value.shape != x.shape:
        raise ValueError(f"the hook at {name} returned shape {list(value.shape)}, but it must be {list(x.shape)}")
    return value


class Cache(dict[str, Tensor]):
    """Activations by hook name; `cache["pattern", 0]` is short for `cache["blocks.0.attn.hook_pattern"]`."""

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        name = hook_name(*key) if isinstance(key, tuple) else key
        if name not in self:
            raise KeyError(f"{name!r} was not recorded; {_nearest(name, self)}")
        return super().__getitem__(name)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(hook_name(*key) if isinstance(key, tuple) else key)

    def get(self, key: Any, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default


IN_ATTENTION = {"q", "k", "v", "attn_scores", "pattern", "z", "result"}
IN_MLP = {"pre", "post"}


def hook_name(short: str, layer: int) -> str:
    """The full name of an activation in a layer.

    >>> hook_name("resid_pre", 3), hook_name("pattern", 0), hook_name("ln1.scale", 2)
    ('blocks.3.hook_resid_pre', 'blocks.0.attn.hook_pattern', 'blocks.2.ln1.hook_scale')
    """
    part, _, last = short.rpartition(".")
    part = part or ("attn" if last in IN_ATTENTION else "mlp" if last in IN_MLP else "")
    return f"blocks.{layer}.{part}.hook_{last}" if part else f"blocks.{layer}.hook_{last}"


def select(model: Hookable, names: Names | None) -> frozenset[str]:
    """The hook names that are meant: one, several, all for which a function is true, or, for None, all but costly ones.

    Raises ValueError for a name that the model does not have, with the nearest that it has.
    """
    known = model.hook_names + model.costly_hook_names
    if names is None:
        return frozenset(model.hook_names)
    if callable(names):
        return frozenset(filter(names, known))
    chosen = frozenset([names] if isinstance(names, str) else names)
    for name in sorted(chosen - set(known)):
        raise ValueError(f"this model has no hook point {name!r}; {_nearest(name, known)}")
    return chosen


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(known[:4])}, ... ({len(known)})"


@contextmanager
def hooked(model: Hookable, hooks: Sequence[tuple[Names, HookFunction]]) -> Iterator[Any]:
    """Attaches hooks for as long as the `with` block lasts, however it ends.

    A hook is `fn(activation, hook)`. What it returns replaces the activation; if it returns nothing, what it
    was given stands, with whatever it wrote into it. Hooks at one point are called in the order given.

    >>> def ablate_head_3(z, hook):
    ...     z[:, :, 3] = 0
    >>> with hooked(model, [("blocks.1.attn.hook_z", ablate_head_3)]):
    ...     logits = model(tokens)

    Raises:
        ValueError: no such hook point, before anything is attached.
    """
    chosen = [(select(model, names), hook) for names, hook in hooks]
    before = {name: list(functions) for name, functions in model.attached.items()}
    try:
        for names, hook in chosen:
            for name in names:
                model.attached.setdefault(name, []).append(hook)
        yield model
    finally:
        model.attached.clear()
        model.attached.update(before)


def run_with_cache(
    model: Hookable,
    inputs: Tensor,
    names: Names | None = None,
    *,
    start_at_layer: int = 0,
    stop_at_layer: int | None = None,
) -> tuple[Tensor, Cache]:
    """The model's output and its activations, all of them or those named, as they are after any hooks.

    `inputs` and the two layers are those of the model's own call. Costly activations (`attn.hook_result`, the
    heads' separate inputs) are recorded only if `names` asks for them. Recorded tensors are not detached: run under
    `torch.no_grad()`, or with parameters that need no gradient, unless you want to differentiate by them.

    >>> logits, cache = run_with_cache(model, tokens)
    >>> cache["pattern", 0].shape  # batch, head, query position, key position
    torch.Size([1, 6, 12, 12])
    """
    cache = Cache()
    points = HookPoints(model.attached, cache, select(model, names))
    return model.run(inputs, points, start_at_layer, stop_at_layer), cache
