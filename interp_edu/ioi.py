"""Indirect objects: `When Mary and John went to the store, John gave a book to` is continued with Mary. How?

Prompts with the positions that matter, path patching, which asks who reads whom, a search for the circuit from the
logits backwards, and its evaluation by mean ablation (Wang et al. 2023).
"""

import random
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_edu import tinyworld
from interp_edu.circuits import Circuit, Nodes
from interp_edu.hooks import HookFunction, hook_name, hooked, run_with_cache
from interp_edu.metrics import Metric, logit_difference
from interp_edu.transformer import Transformer, normalized, weights

Head = tuple[int, int]  # layer, head
PerHead = Float[Tensor, "layer head"]

# A name as a text's first word would be another token in GPT-2; so these are tinyworld's openings that begin otherwise.
_OPENINGS = [opening.replace(" ,", ",") for opening in tinyworld.OPENINGS if not opening.startswith("{A}")]
TEMPLATES = [f"{opening} {closing}" for opening in _OPENINGS for closing in tinyworld.CLOSINGS]


# Prompts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Sentences with two names, one of which comes again; the other is the answer. Rows are padded after END.

    `roles` holds the positions [batch] of `IO`, `S1`, `S1+1`, `S2` and `END`; `io` and `s` are the names as tokens.
    """

    tokens: Int[Tensor, "batch pos"]
    roles: dict[str, Int[Tensor, "batch"]]
    names: tuple[int, ...]
    texts: list[str]

    @property
    def io(self) -> Int[Tensor, "batch"]:
        return self.at("IO", self.tokens)

    @property
    def s(self) -> Int[Tensor, "batch"]:
        return self.at("S1", self.tokens)

    @property
    def difference(self) -> Metric:
        """The logit of IO minus that of S, at END."""
        return logit_difference(self.io, self.s, self.roles["END"])

    @property
    def lift(self) -> Metric:
        """The mean logit of IO and S minus the mean over all words, at END: what `difference` is blind to."""
        names = torch.stack([self.io, self.s], dim=1)[None]
        return Metric(lambda logits: logits.take_along_dim(names, 2).mean(2) - logits.mean(2), self.roles["END"])

    def at(self, role: str, x: Tensor) -> Tensor:
        """What x [batch, pos, ...] holds at each row's position of a role, [batch, ...]."""
        return x[torch.arange(len(x)), self.roles[role]]

    def with_names(self, **names: Int[Tensor, "batch"]) -> Int[Tensor, "batch pos"]:
        """The same sentences with other names, such as S2=prompts.io, which swaps the giver."""
        tokens = self.tokens.clone()
        for role, ids in names.items():
            tokens[torch.arange(len(tokens)), self.roles[role]] = ids
        return tokens

    def abc(self, seed: int = 0) -> Int[Tensor, "batch pos"]:
        """The same sentences with three other names, all different: who gets it, nobody can tell."""
        rng, taken = random.Random(seed), zip(self.io.tolist(), self.s.tolist(), strict=True)
        drawn = [rng.sample([name for name in self.names if name not in pair], 3) for pair in taken]
        return self.with_names(**dict(zip(("IO", "S1", "S2"), torch.tensor(drawn).T, strict=True)))


def prompts(
    tokenizer: Any, n: int, *, templates: Sequence[str] = TEMPLATES, names: Sequence[str] | None = None, seed: int = 0
) -> Prompts:
    """n sentences, in both orders by turns: with S1 before IO (`BABA`) and after it (`ABBA`).

    Templates have {A} and {B}, then {S}, and words after it; {place} and {object} are filled in if they are there.
    Raises ValueError for names that are not single tokens, fewer than five of them, or templates of another form.
    """
    known = {"A", "B", "S", "place", "object"}
    for template in templates:
        unknown = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None} - known
        if unknown:
            raise ValueError(f"{template!r} has fields {sorted(unknown)}; known are {sorted(known)}")
        places = [template.find(part) for part in ("{A}", "{B}", "{S}")]
        if not 0 < places[0] < places[1] < places[2] or template.rstrip().endswith("{S}"):
            raise ValueError(
                "a template needs a word, {A}, {B} and {S} in this order, and words after {S}, the last of which is "
                f"END: not {template!r}"
            )
    if n < 1 or not templates:
        raise ValueError(f"at least one sentence and one template, not {n} of {len(templates)}")
    names = tinyworld.NAMES if names is None else names
    space = "" if isinstance(tokenizer, tinyworld.Tokenizer) else " "  # GPT-2's words include the space before them
    ids = {name: tokenizer.id(space + name) for name in names}
    if len(set(ids.values())) < 5:
        raise ValueError(f"two names, and three others for counterparts, are needed: five different ones, not {names}")
    rng, rows, texts, roles = random.Random(seed), [], [], []
    for i in range(n):
        a, b = rng.sample(list(ids), 2)
        giver = (a, b)[i % 2]
        words = {"place": rng.choice(tinyworld.PLACES), "object": rng.choice(tinyworld.OBJECTS)}
        texts.append(rng.choice(templates).rstrip().format(A=a, B=b, S=giver, **words))
        row = tokenizer.encode(texts[-1])[0].tolist()
        again = [j for j, token in enumerate(row) if token == ids[giver]]
        if len(again) != 2 or {row.count(ids[a]), row.count(ids[b])} != {1, 2}:
            raise ValueError(f"as tokens, the giver must stand there twice and the other name once: {texts[-1]!r}")
        first, second = row.index(ids[a]), row.index(ids[b])
        s1, io = (first, second) if giver == a else (second, first)
        roles.append({"IO": io, "S1": s1, "S1+1": s1 + 1, "S2": again[1], "END": len(row) - 1})
        rows.append(row)
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [tokenizer.bos] * (longest - len(row)) for row in rows])
    where = {role: torch.tensor([row[role] for row in roles]) for role in roles[0]}
    return Prompts(tokens, where, tuple(ids.values()), texts)


@torch.no_grad()
def performance(model: Transformer, p: Prompts) -> dict[str, float]:
    """The mean logit difference, how often IO is above S, how often it is the likeliest word, and its probability."""
    logits = p.at("END", model(p.tokens))
    io, s = (logits.gather(1, ids[:, None])[:, 0] for ids in (p.io, p.s))
    return {
        "logit_difference": (io - s).mean().item(),
        "io_above_s": (io > s).double().mean().item(),
        "io_first": (logits.argmax(dim=1) == p.io).double().mean().item(),
        "p_io": logits.softmax(dim=1).gather(1, p.io[:, None]).mean().item(),
    }


# Path patching -----------------------------------------------------------------------------------


class PathPatching:
    """What a head's output tells one other component *directly*: not what it does by way of further heads.

    Three runs (Wang et al. 2023, appendix B). (1) Clean and corrupted, both cached. (2) The clean prompt, with the
    senders' outputs from the corrupted run and every other head frozen to its clean output; MLPs, if not frozen too,
    and LayerNorms are computed anew, so routes through them stay open. What arrives at the receivers is recorded.
    (3) The clean prompt once more, with only the receivers' inputs replaced by what was recorded.

    >>> paths = PathPatching(model, p.tokens, p.abc(), p.difference)
    >>> paths.effect([(9, 9)])  # of L9H9 on the logits, directly: by how much the metric changes
    >>> paths.effect([(7, 3), (8, 6)], [(9, 9, "q")])  # on the query of L9H9
    >>> paths.sweep([(9, 9, "q")]).shape  # of every head
    torch.Size([12, 12])
    """

    def __init__(
        self,
        model: Transformer,
        clean: Int[Tensor, "batch pos"],
        corrupted: Int[Tensor, "rows tokens"],
        metric: Metric,
        *,
        freeze_mlps: bool = False,
    ):
        if clean.shape != corrupted.shape:
            raise ValueError(f"clean has shape {list(clean.shape)}, corrupted {list(corrupted.shape)}: not row for row")
        self.model, self.tokens, self.metric = model, clean, metric
        self.freeze_mlps = freeze_mlps and not model.cfg.attn_only
        with torch.no_grad():
            logits, self.clean = run_with_cache(model, clean)
            _, self.corrupted = run_with_cache(model, corrupted)
            self.value = metric(logits).item()

    @torch.no_grad()
    def effect(
        self,
        senders: Iterable[tuple[int, int | None]],
        receivers: Iterable[tuple[int, int, str]] | None = None,
        at: Int[Tensor, "batch"] | None = None,
    ) -> float:
        """The metric's change when `receivers`, (layer, head, "q" | "k" | "v"), hear the senders' corrupted outputs.

        None stands for the logits. A sender (layer, None) is an MLP. `at` is the one position in each row at which
        senders are patched; None means all. Raises ValueError for what is not there.
        """
        senders, receivers = set(senders), None if receivers is None else set(receivers)
        if receivers is not None and (not receivers or None in {head for _, head, _ in receivers}):
            raise ValueError(
                "receivers are heads, as (layer, head, side), not None or none; leave them out for the logits"
            )
        self._check({sender[:2] for sender in senders} | {receiver[:2] for receiver in receivers or ()})
        if receivers is not None and (wrong := {side for *_, side in receivers} - set("qkv")):
            raise ValueError(f"a receiver's input is q, k or v, not {', '.join(sorted(map(str, wrong)))}")
        frozen = self._frozen(senders, at)
        if receivers is None:
            with hooked(self.model, frozen):
                return self.metric(self.model(self.tokens)).item() - self.value
        names = {hook_name(side, layer) for layer, _, side in receivers}
        with hooked(self.model, frozen):
            last = max(layer for layer, *_ in receivers)
            _, heard = run_with_cache(self.model, self.tokens, sorted(names), stop_at_layer=last + 1)

        def put(x: Tensor, hook: Any) -> None:
            for layer, head, side in receivers:
                if hook.name == hook_name(side, layer):
                    x[:, :, head] = heard[hook.name][:, :, head]

        start = min(layer for layer, *_ in receivers)
        with hooked(self.model, [(sorted(names), put)]):
            logits = self.model(self.clean["resid_pre", start], start_at_layer=start)
        return self.metric(logits).item() - self.value

    def sweep(
        self, receivers: Iterable[tuple[int, int, str]] | None = None, at: Int[Tensor, "batch"] | None = None
    ) -> PerHead:
        """`effect` of every single head; 0 for heads that come too late."""
        receivers = None if receivers is None else list(receivers)
        cfg, table = self.model.cfg, torch.zeros(self.model.cfg.n_layers, self.model.cfg.n_heads)
        for layer in range(cfg.n_layers if receivers is None else max(r[0] for r in receivers)):
            for head in range(cfg.n_heads):
                table[layer, head] = self.effect([(layer, head)], receivers, at)
        return table

    def _frozen(self, senders: set[Any], at: Tensor | None) -> list[tuple[str, HookFunction]]:
        rows = torch.arange(len(self.tokens))
        where = (slice(None), slice(None)) if at is None else (rows, at)

        def hook(x: Tensor, point: Any) -> None:
            if point.name.endswith("hook_z") or self.freeze_mlps:
                x.copy_(self.clean[point.name])
            for layer, head in senders:
                if point.name == hook_name("mlp_out" if head is None else "z", layer):
                    what = where if head is None else (*where, head)
                    x[what] = self.corrupted[point.name][what]

        sites = ["z"] if self.model.cfg.attn_only else ["z", "mlp_out"]
        return [(hook_name(site, layer), hook) for layer in range(self.model.cfg.n_layers) for site in sites]

    def _check(self, nodes: set[Any]) -> None:
        cfg = self.model.cfg
        for layer, head in nodes:
            known = head in range(cfg.n_heads) or (head is None and not cfg.attn_only)
            if not known or layer not in range(cfg.n_layers):
                raise ValueError(f"there is no component {layer, head}: {cfg.n_layers} layers of {cfg.n_heads} heads")


def discover(paths: PathPatching, threshold: float = 0.5) -> Circuit:
    """The circuit from the logits backwards: who tells them something directly, who tells those, and so on.

    An edge is kept if path patching along it changes the metric by at least `threshold`, in the metric's own unit; its
    weight is by how much the metric falls. Single senders only: what several do together it may not see.
    """
    edges: dict[tuple[str, str, str], float] = {}
    waiting: list[tuple[str, str, list[tuple[int, int, str]] | None]] = [("logits", "", None)]
    found: set[Head] = set()
    while waiting:
        receiver, side, inputs = waiting.pop(0)
        falls = -paths.sweep(inputs)
        for layer, head in (falls.abs() >= threshold).nonzero().tolist():
            edges[f"L{layer}H{head}", receiver, side] = falls[layer, head].item()
            if (layer, head) not in found and layer > 0:
                waiting += [(f"L{layer}H{head}", side, [(layer, head, side)]) for side in "qkv"]
            found.add((layer, head))
    return Circuit({f"L{layer}H{head}": "" for layer, head in sorted(found)}, edges)


# Heads by what they do ---------------------------------------------------------------------------

LOOKS = {
    "previous-token": ("S1+1", "S1"),
    "duplicate-token": ("S2", "S1"),
    "induction": ("S2", "S1+1"),
    "S-inhibition": ("END", "S2"),
    "name mover": ("END", "IO"),
}


@torch.no_grad()
def attention_by_role(model: Transformer, p: Prompts, pairs: Iterable[tuple[str, str]]) -> list[PerHead]:
    """For each (from, to): the mean attention of every head from the one role's position to the other's."""
    _, cache = run_with_cache(model, p.tokens, [hook_name("pattern", i) for i in range(model.cfg.n_layers)])
    patterns = torch.stack([cache["pattern", i] for i in range(model.cfg.n_layers)], dim=1)  # batch layer head q k
    rows = torch.arange(len(p.tokens))
    return [patterns[rows, :, :, p.roles[a], p.roles[b]].mean(dim=0) for a, b in pairs]


def classified(model: Transformer, p: Prompts, circuit: Circuit, least: float = 0.3) -> Circuit:
    """A circuit of heads with their roles: the one of LOOKS in which a head attends most, if by at least `least`.

    A name mover whose message to the logits raises the metric when it is corrupted is a negative one.
    """
    tables, nodes = attention_by_role(model, p, LOOKS.values()), {}
    for name in circuit.nodes:
        layer, head = map(int, name[1:].split("H"))
        score, role = max((table[layer, head].item(), role) for table, role in zip(tables, LOOKS, strict=True))
        negative = role == "name mover" and circuit.edges.get((name, "logits", ""), 0) < 0
        nodes[name] = f"{'negative ' * negative}{role} head" if score >= least else "other head"
    return Circuit(nodes, circuit.edges)


@torch.no_grad()
def copy_scores(model: Transformer, p: Prompts, role: str = "IO", *, sign: int = 1, top: int = 5) -> PerHead:
    """How often the name at a position is among the `top` words that a head would raise (sign -1: lower) if it
    attended there alone: the stream after block 0, the head's values and output, the last LayerNorm, the unembedding
    (Wang et al. 2023, section 3.1)."""
    _, cache = run_with_cache(model, p.tokens, hook_name("resid_post", 0), stop_at_layer=1)
    x, names = p.at(role, cache["resid_post", 0]), p.at(role, p.tokens)
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    out = weights(model.unembed)
    for layer, block in enumerate(model.blocks):
        parts: Any = block
        attn = weights(parts.attn)
        inputs = normalized(x, weights(parts.ln1), model.cfg)
        v = torch.einsum("bd,hde->hbe", inputs, attn["W_V"]) + attn["b_V"][:, None]
        written = sign * torch.einsum("hbe,hed->hbd", v, attn["W_O"])
        logits = normalized(written, weights(model.ln_final), model.cfg) @ out["W_U"] + out["b_U"]
        own = logits.take_along_dim(names[None, :, None], dim=2)
        scores[layer] = ((logits >= own).sum(dim=2) <= top).float().mean(dim=1)
    return scores


# Evaluation --------------------------------------------------------------------------------------


class Knockout:
    """The metric when only some nodes work and all other heads are replaced by their mean over ABC sentences.

    The mean is taken row by row and position by position over `draws` ABC counterparts of each sentence, so that
    everything but the names stays. A node is a head, "L9H9", at all positions, or at one: "L9H9 at END". MLPs work.
    An instance is a `Score` for `faithfulness`, `completeness` and `minimality` in `circuits`.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, p: Prompts, metric: Metric | None = None, draws: int = 10):
        self.model, self.p, self.metric = model, p, metric or p.difference
        self.layers = range(model.cfg.n_layers)
        names = [hook_name("z", layer) for layer in self.layers]
        runs = [run_with_cache(model, p.abc(seed), names)[1] for seed in range(draws)]
        self.means = {name: sum(cache[name] for cache in runs) / draws for name in names}
        self.network: Nodes = frozenset(f"L{i}H{h}" for i in self.layers for h in range(model.cfg.n_heads))

    def hooks(self, kept: Iterable[str]) -> list[tuple[list[str], HookFunction]]:
        """What to attach for only `kept` to work. Raises ValueError for a name that is not a node."""
        works = torch.zeros(len(self.layers), *self.p.tokens.shape, self.model.cfg.n_heads, dtype=torch.bool)
        for node in kept:
            name, _, role = node.partition(" at ")
            if name not in self.network or (" at " in node and role not in self.p.roles):
                raise ValueError(f"there is no node {node!r}: write 'L1H0', or 'L1H0 at END' with {list(self.p.roles)}")
            layer, head = map(int, name[1:].split("H"))
            if role:
                works[layer, torch.arange(len(self.p.tokens)), self.p.roles[role], head] = True
            else:
                works[layer, :, :, head] = True

        def replace(z: Tensor, hook: Any) -> Tensor:
            layer = int(hook.name.split(".")[1])
            return torch.where(works[layer][..., None], z, self.means[hook.name])

        return [(list(self.means), replace)]

    @torch.no_grad()
    def __call__(self, kept: Iterable[str]) -> float:
        """The metric with the nodes `kept`."""
        with hooked(self.model, self.hooks(kept)):
            return self.metric(self.model(self.p.tokens)).item()


def backups(model: Transformer, p: Prompts, knocked_out: Iterable[str]) -> PerHead:
    """By how much more each head tells the logits, directly, in favour of IO when some nodes are knocked out."""
    knockout, corrupted = Knockout(model, p), p.abc()
    before = PathPatching(model, p.tokens, corrupted, p.difference).sweep()
    with hooked(model, knockout.hooks(knockout.network - set(knocked_out))):
        return before - PathPatching(model, p.tokens, corrupted, p.difference).sweep()
