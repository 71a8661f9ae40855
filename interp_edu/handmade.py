"""Models wired by hand, each with the circuit it implements: the ground truth on which every tool is tested.

No weight here is trained. The residual stream is divided into named subspaces, and every head reads from some and
writes to another, so that a line of wiring says what the head does. `idle` heads look busy but feed nothing that
reaches the output: a tool that points at one of them is wrong. `circuit_free` makes a control of the same shape.

    induction_model()   two layers of attention: a previous-token head feeds an induction head (Elhage et al. 2021)
    shifted_induction_model()   the same function, where the usual score sees nothing
    ioi_model()         three layers: duplicate-token, S-inhibition and name-mover heads (Wang et al. 2022)
    fact_model()        an MLP stores facts by subject; heads read them out, one for each relation (Geva et al. 2023)
    gate_model()        heads bring in bits and an MLP counts them: an AND, an OR, or a vote
"""

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp_edu import tinyworld
from interp_edu.circuits import Circuit
from interp_edu.tinyworld import BOS, Tokenizer
from interp_edu.transformer import Config, Transformer

SHARP = 30.0  # scores differ by about this much, so a softmax is all or nothing to 12 digits


@dataclass(frozen=True)
class Edge:
    """`sender` writes, at position `at`, what `receiver` reads into its `input`: "q", "k", "v", "mlp" or "logits"."""

    sender: str
    receiver: str
    input: str
    at: str


@dataclass(frozen=True)
class Wired:
    """A model and its circuit: `nodes` maps a component to its role and to the position where it acts."""

    model: Transformer
    nodes: dict[str, tuple[str, str]]
    edges: tuple[Edge, ...]
    idle: dict[str, str]

    @property
    def circuit(self) -> Circuit:
        """Nodes with their roles, and edges, each of weight 1; positions are left out."""
        edges = {(e.sender, e.receiver, "" if e.receiver == "logits" else e.input): 1.0 for e in self.edges}
        return Circuit({name: role for name, (role, _) in self.nodes.items()}, edges)

    def heads(self) -> list[tuple[int, int]]:
        """The circuit's heads as (layer, head)."""
        return [(int(layer), int(head)) for name in self.nodes if "H" in name for layer, head in [name[1:].split("H")]]


class Stream:
    """A residual stream divided into named subspaces: `stream["token"]` is the slice of one of them."""

    def __init__(self, **sizes: int):
        ends = list(itertools.accumulate(sizes.values()))
        self.slices = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self.d_model = ends[-1]

    def __getitem__(self, name: str) -> slice:
        return self.slices[name]


class Wiring:
    """A head being wired, all zeros at first. Each `match`, `prefer` and `move` takes some of its d_head dimensions."""

    def __init__(self, wired: Transformer, layer: int, head: int):
        attn: Any = wired.blocks[layer].attn
        self.W_Q, self.W_K, self.W_V, self.W_O = (getattr(attn, f"W_{side}").data[head] for side in "QKVO")
        self.b_Q = attn.b_Q.data[head]
        self.matched = self.moved = 0

    def match(self, query: slice, key: slice, table: Tensor) -> "Wiring":
        """Adds query^T table key to the score."""
        used = slice(self.matched, self.matched + table.shape[1])
        self.W_Q[query, used] = table * self.b_Q.numel() ** 0.5  # attention will divide by this root
        self.W_K[key, used] = torch.eye(table.shape[1])
        self.matched = used.stop
        return self

    def prefer(self, key: slice, scores: Tensor) -> "Wiring":
        """Adds scores^T key to the score, whatever the query."""
        self.W_K[key, self.matched] = scores
        self.b_Q[self.matched] = self.b_Q.numel() ** 0.5
        self.matched += 1
        return self

    def move(self, source: slice, target: slice, gain: float = 1.0, skip: int | None = None) -> "Wiring":
        """Writes gain times what the attended position holds in `source` into `target`, but not entry `skip`."""
        size = source.stop - source.start
        used = slice(self.moved, self.moved + size)
        read = torch.eye(size)
        if skip is not None:
            read[skip] = 0
        self.W_V[source, used] = read
        self.W_O[used, target] = gain * torch.eye(size)
        self.moved = used.stop
        return self


def _blank(stream: Stream, tokenizer: Tokenizer, **settings: Any) -> Transformer:
    """A model of zeros without LayerNorm, but for its positions, which are one-hot in `pos`."""
    settings = {"attn_only": True, "normalization_type": None, "act_fn": "relu", **settings}
    model = Transformer(Config(d_model=stream.d_model, d_vocab=len(tokenizer), **settings))
    for parameter in model.parameters():
        parameter.data.zero_()
    model.pos_embed.W_pos.data[:, stream["pos"]] = torch.eye(model.cfg.n_ctx)
    model.tokenizer = tokenizer
    return model.requires_grad_(False).eval()


def _embed(model: Transformer, where: slice, words: list[str], out: slice | None = None) -> None:
    """Gives each word a dimension of its own in `where`, and reads its logit from the same place in `out`."""
    for i, word in enumerate(words):
        model.embed.W_E.data[model.tokenizer.id(word), where.start + i] = 1
        if out is not None:
            model.unembed.W_U.data[out.start + i, model.tokenizer.id(word)] = 1


def _back(n_ctx: int, by: int = 1) -> Tensor:
    """The table that matches a query at position p with the key at p - by, or the first key if there is none."""
    return SHARP * torch.eye(n_ctx)[(torch.arange(n_ctx) - by).clamp_min(0)]


# (a) Induction -----------------------------------------------------------------------------------

LETTERS = list("abcdefghijkl")


def induction_model(n_ctx: int = 16, gain: float = 10.0) -> Wired:
    """Predicts the letter that followed the current one before; if it is new, all are equally likely.

    L0H1, the previous-token head, writes into `previous` which letter came before. L1H0, the induction head, attends
    to the positions whose `previous` is the current letter and copies the letters it finds there; if there are none,
    it rests on the first token, which says nothing.
    """
    tokenizer, V = Tokenizer([BOS, *LETTERS]), 1 + len(LETTERS)
    stream = Stream(token=V, pos=n_ctx, previous=V, out=V, junk=V)
    model = _blank(stream, tokenizer, n_layers=2, n_ctx=n_ctx, n_heads=3, d_head=V + n_ctx)
    token, pos, previous, out, junk = (stream[name] for name in ("token", "pos", "previous", "out", "junk"))
    _embed(model, token, tokenizer.vocab, out)
    letters = torch.eye(V)
    letters[tokenizer.bos] = 0
    rest = SHARP * (1 - letters.sum(dim=0))  # on the first token
    Wiring(model, 0, 1).match(pos, pos, _back(n_ctx)).move(token, previous)
    Wiring(model, 1, 0).match(token, previous, 2 * SHARP * letters).prefer(token, rest).move(
        token, out, gain, skip=tokenizer.bos
    )
    Wiring(model, 0, 2).match(pos, pos, _back(n_ctx)).move(token, junk)
    Wiring(model, 1, 1).match(token, previous, 2 * SHARP * letters).prefer(token, rest).move(token, junk)
    return Wired(
        model,
        nodes={"L0H1": ("previous-token head", "successor"), "L1H0": ("induction head", "END")},
        edges=(
            Edge("embed", "L0H1", "v", "first"),
            Edge("L0H1", "L1H0", "k", "successor"),
            Edge("embed", "L1H0", "q", "END"),
            Edge("embed", "L1H0", "v", "successor"),
            Edge("L1H0", "logits", "logits", "END"),
        ),
        idle={"L0H2": "attends like a previous-token head", "L1H1": "attends like an induction head"},
    )


def shifted_induction_model(shift: int = 2, n_ctx: int = 16, gain: float = 10.0) -> Wired:
    """The same function by another route: the induction head looks `shift` positions further than the word it copies.

    L0H1 notes which letter stood `1 + shift` back, L0H0 which stood `shift` back. L1H0 attends to the positions whose
    first note is the current letter and copies their second note. The usual score, attention to the position
    after the match, is zero for it. (Matches nearer than `1 + shift` it cannot see.)
    """
    tokenizer, V = Tokenizer([BOS, *LETTERS]), 1 + len(LETTERS)
    stream = Stream(token=V, pos=n_ctx, previous=V, fetched=V, out=V)
    model = _blank(stream, tokenizer, n_layers=2, n_ctx=n_ctx, n_heads=3, d_head=V + n_ctx)
    token, pos, previous, fetched, out = stream.slices.values()
    _embed(model, token, tokenizer.vocab, out)
    letters = torch.eye(V)
    letters[tokenizer.bos] = 0
    rest = SHARP * (1 - letters.sum(dim=0))
    Wiring(model, 0, 0).match(pos, pos, _back(n_ctx, shift)).move(token, fetched)
    Wiring(model, 0, 1).match(pos, pos, _back(n_ctx, 1 + shift)).move(token, previous)
    Wiring(model, 1, 0).match(token, previous, 2 * SHARP * letters).prefer(token, rest).move(
        fetched, out, gain, skip=tokenizer.bos
    )
    return Wired(
        model,
        nodes={
            "L0H0": (f"looks {shift} back", "successor"),
            "L0H1": (f"looks {1 + shift} back", "successor"),
            "L1H0": ("induction head", "END"),
        },
        edges=(
            Edge("embed", "L0H0", "v", "first"),
            Edge("embed", "L0H1", "v", "first"),
            Edge("L0H1", "L1H0", "k", "successor"),
            Edge("L0H0", "L1H0", "v", "successor"),
            Edge("embed", "L1H0", "q", "END"),
            Edge("L1H0", "logits", "logits", "END"),
        ),
        idle={},
    )


# (b) Indirect objects ----------------------------------------------------------------------------


def ioi_model(gain: float = 10.0) -> Wired:
    """Solves tinyworld's indirect-object sentences: the logit of IO is `gain`, that of S and all others 0.

    L0H0, the duplicate-token head, attends from S2 to S1 and writes into `duplicate` at which position S1 is. L1H1, the
    S-inhibition head, attends from END to the position that has such a mark and moves both positions, S1's and S2's,
    into `inhibited`. L2H2, the name mover, attends from END to each name that is not at an inhibited position, and
    copies it. The signal is one of position, and it reaches the S-inhibition head through its keys and its values.
    """
    tokenizer, n_ctx, n_names = Tokenizer(), tinyworld.N_CTX, len(tinyworld.NAMES)
    stream = Stream(name=n_names, bos=1, to=1, pos=n_ctx, duplicate=n_ctx, inhibited=n_ctx, out=n_names, junk=n_ctx)
    model = _blank(stream, tokenizer, n_layers=3, n_ctx=n_ctx, n_heads=3, d_head=2 * n_ctx + 2)
    name, bos, to, pos, duplicate, inhibited, out, junk = stream.slices.values()
    _embed(model, name, tinyworld.NAMES, out)
    _embed(model, bos, [BOS])
    _embed(model, to, ["to"])
    same_name, same_place = torch.eye(n_names), torch.eye(n_ctx)
    rest, marked = torch.tensor([1.5 * SHARP]), torch.ones(1, n_ctx)

    duplicate_token = Wiring(model, 0, 0).match(name, name, 3 * SHARP * same_name)
    duplicate_token.match(pos, pos, -3 * SHARP * same_place).prefer(bos, rest).move(pos, duplicate, skip=0)
    s_inhibition = Wiring(model, 1, 1).match(to, duplicate, 3 * SHARP * marked).prefer(bos, rest)
    s_inhibition.move(duplicate, inhibited).move(pos, inhibited, skip=0)
    name_mover = Wiring(model, 2, 2).match(to, name, 3 * SHARP * torch.ones(1, n_names))
    name_mover.match(inhibited, pos, -3 * SHARP * same_place).prefer(bos, rest).move(name, out, gain)

    Wiring(model, 0, 1).match(pos, pos, _back(n_ctx)).move(pos, junk)
    Wiring(model, 1, 2).match(to, duplicate, 3 * SHARP * marked).prefer(bos, rest).move(pos, junk)
    Wiring(model, 2, 0).match(to, name, 3 * SHARP * torch.ones(1, n_names)).prefer(bos, rest).move(pos, junk)
    return Wired(
        model,
        nodes={
            "L0H0": ("duplicate-token head", "S2"),
            "L1H1": ("S-inhibition head", "END"),
            "L2H2": ("name mover head", "END"),
        },
        edges=(
            Edge("embed", "L0H0", "q", "S2"),
            Edge("embed", "L0H0", "k", "S1"),
            Edge("embed", "L0H0", "v", "S1"),
            Edge("L0H0", "L1H1", "k", "S2"),
            Edge("L0H0", "L1H1", "v", "S2"),
            Edge("embed", "L1H1", "v", "S2"),
            Edge("L1H1", "L2H2", "q", "END"),
            Edge("embed", "L2H2", "k", "IO"),
            Edge("embed", "L2H2", "v", "IO"),
            Edge("L2H2", "logits", "logits", "END"),
        ),
        idle={"L0H1": "looks one back", "L1H2": "attends like the S-inhibition head", "L2H0": "attends to all names"},
    )


# (c) Facts ---------------------------------------------------------------------------------------

FACT_FIRST, FACT_LAST = tinyworld.FIRST[:4], tinyworld.LAST[:4]
FACT_WORDS = {relation: tinyworld.ANSWERS[relation][:4] for relation in ("home", "job", "instrument")}
FACT_FILLER = ["the", "of", "is", "old", "well"]


def stored_facts() -> dict[tuple[str, str, str], str]:
    """What `fact_model` knows: (first name, last name, relation) to answer.

    The answers of a relation form a Latin square, so that neither name alone gives anything away.
    """
    table = {}
    for (i, first), (j, last) in itertools.product(enumerate(FACT_FIRST), enumerate(FACT_LAST)):
        for relation, square in {"home": (i + j) % 4, "job": i ^ j, "instrument": (i - j) % 4}.items():
            table[first, last, relation] = FACT_WORDS[relation][square]
    return table


def fact_model(n_ctx: int = 16, gain: float = 10.0) -> Wired:
    """Answers `Clara Stone ... home`: two words for a subject anywhere, a relation as the last word.

    L0H0 moves the first name to the last one. MLP 0 has a neuron for every subject: it fires where both names meet,
    and writes the subject's answers into `home`, `job` and `instrument`, and a mark into `known`.
    L1H0, L1H1 and L1H2 each wait for their relation, attend to the mark and move their answer to the output.
    """
    relations = list(FACT_WORDS)
    answers = itertools.chain(*FACT_WORDS.values())
    tokenizer = Tokenizer([BOS, *FACT_FIRST, *FACT_LAST, *relations, *answers, *FACT_FILLER])
    sizes = {"bos": 1, "first": 4, "last": 4, "relation": 3, "pos": n_ctx, "before": 4}
    stream = Stream(**sizes, home=4, job=4, instrument=4, known=1, out_home=4, out_job=4, out_instrument=4, junk=4)
    subjects = list(itertools.product(range(4), range(4)))
    model = _blank(
        stream, tokenizer, n_layers=2, n_ctx=n_ctx, n_heads=4, d_head=n_ctx + 4, attn_only=False, d_mlp=len(subjects)
    )
    for where, words in (("bos", [BOS]), ("first", FACT_FIRST), ("last", FACT_LAST), ("relation", relations)):
        _embed(model, stream[where], words)
    pos, known = stream["pos"], stream["known"]
    Wiring(model, 0, 0).match(pos, pos, _back(n_ctx)).move(stream["first"], stream["before"])
    mlp: Any = model.blocks[0].mlp
    for neuron, (i, j) in enumerate(subjects):
        mlp.W_in.data[stream["before"].start + i, neuron] = 2
        mlp.W_in.data[stream["last"].start + j, neuron] = 2
        mlp.b_in.data[neuron] = -3  # one name alone is not enough: 2 - 3 < 0 < 2 + 2 - 3
        mlp.W_out.data[neuron, known] = 1
        for relation, words in FACT_WORDS.items():
            answer = words.index(stored_facts()[FACT_FIRST[i], FACT_LAST[j], relation])
            mlp.W_out.data[neuron, stream[relation].start + answer] = 1
    for head, relation in enumerate(relations):
        asked = torch.zeros(3, 1)
        asked[head] = 3 * SHARP
        out = stream[f"out_{relation}"]
        reader = Wiring(model, 1, head).match(stream["relation"], known, asked)
        reader.prefer(stream["bos"], torch.tensor([1.5 * SHARP])).move(stream[relation], out, gain)
        for i, word in enumerate(FACT_WORDS[relation]):
            model.unembed.W_U.data[out.start + i, tokenizer.id(word)] = 1
    # Idle: a second head that looks back, and a second MLP that recognises last names.
    Wiring(model, 0, 1).match(pos, pos, _back(n_ctx)).move(stream["last"], stream["junk"])
    idle_mlp: Any = model.blocks[1].mlp
    idle_mlp.W_in.data[stream["last"], :4] = torch.eye(4)
    idle_mlp.W_out.data[:4, stream["junk"]] = torch.eye(4)
    readers = {f"L1H{head}": (f"reads out {relation}", "END") for head, relation in enumerate(relations)}
    return Wired(
        model,
        nodes={"L0H0": ("previous-token head", "subject"), "MLP0": ("fact store", "subject"), **readers},
        edges=(
            Edge("embed", "L0H0", "v", "first name"),
            Edge("L0H0", "MLP0", "mlp", "subject"),
            Edge("embed", "MLP0", "mlp", "subject"),
            *(Edge("MLP0", reader, side, "subject") for reader in readers for side in "kv"),
            *(Edge("embed", reader, "q", "END") for reader in readers),
            *(Edge(reader, "logits", "logits", "END") for reader in readers),
        ),
        idle={"L0H1": "attends to the previous token", "MLP1": "recognises last names"},
    )


# (d) Gates ---------------------------------------------------------------------------------------


def gate_model(inputs: int = 2, needed: int = 2, gain: float = 5.0) -> Wired:
    """Reads `inputs` bits and "=": the logit of yes minus no is gain if `needed` of the bits are 1 or more, else -gain.

    All needed: an AND; one: an OR; in between: a vote. Head i brings bit i to the end, where MLP 0 counts them.
    """
    tokenizer, shape = Tokenizer([BOS, "0", "1", "=", "no", "yes"]), {"n_heads": inputs + 1, "d_head": 2, "d_mlp": 2}
    stream = Stream(one=1, pos=inputs + 2, **{f"bit_{i}": 1 for i in range(inputs)}, out=1, junk=1)
    model = _blank(stream, tokenizer, n_layers=1, n_ctx=inputs + 2, attn_only=False, **shape)
    _embed(model, stream["one"], ["1"])
    for head, target in enumerate([*(f"bit_{i}" for i in range(inputs)), "junk"]):
        at = SHARP * torch.eye(inputs + 2)[1 + head % inputs]
        Wiring(model, 0, head).prefer(stream["pos"], at).move(stream["one"], stream[target])
    mlp: Any = model.blocks[0].mlp
    mlp.W_in.data[stream["bit_0"].start : stream["out"].start] = 1
    mlp.b_in.data[:] = torch.tensor([1.0 - needed, -needed])  # relu(n + 1 - needed) - relu(n - needed): 0 or 1
    mlp.W_out.data[:, stream["out"]] = torch.tensor([[1.0], [-1.0]])
    model.unembed.W_U.data[stream["out"], tokenizer.id("yes")] = 2 * gain
    model.unembed.b_U.data[tokenizer.id("no")] = gain
    heads = {f"L0H{i}": ("input", "END") for i in range(inputs)}
    edges = (*(Edge(head, "MLP0", "mlp", "END") for head in heads), Edge("MLP0", "logits", "logits", "END"))
    return Wired(model, heads | {"MLP0": ("gate", "END")}, edges, idle={f"L0H{inputs}": "moves the first bit to junk"})


# (e) Controls ------------------------------------------------------------------------------------


def circuit_free(wired: Wired, seed: int = 0) -> Transformer:
    """A model of the same shape, embeddings and weight norms whose attention and MLP weights are random."""
    model = copy.deepcopy(wired.model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise * parameter.norm() / noise.norm())
    return model
