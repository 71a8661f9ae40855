"""Factual recall: where a model looks up that Clara Stone lives in Paris, moving a fact, and editing one.

Causal tracing by noise (Meng et al. 2022), transplants of activations between subjects, neurons as keys and values
(Geva et al. 2021), and a rank-one edit of an MLP (ROME, Meng et al. 2022), written from its equations.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_edu import tinyworld
from interp_edu.hooks import hook_name, hooked, run_with_cache
from interp_edu.logit_lens import word_effects
from interp_edu.metrics import probability
from interp_edu.patching import Patching, noised
from interp_edu.tinyworld import Fact
from interp_edu.transformer import Transformer, weights


@dataclass(frozen=True)
class Questions:
    """Facts asked in one form of words, so that all rows have the subject at the same positions.

    `subject` are the positions of its two words; the last position of a row is END, which predicts the answer.
    """

    tokens: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch"]
    subject: tuple[int, int]
    facts: tuple[Fact, ...]

    @torch.no_grad()
    def asked(self, model: Transformer) -> Float[Tensor, "batch d_vocab"]:
        """The logits at END."""
        return model(self.tokens)[:, -1]


def questions(tokenizer: Any, facts: Sequence[Fact], paraphrase: int = 0, aside: str = "") -> Questions:
    """The facts as prompts, in one of their six forms, with an aside after the subject if there is one.

    Raises ValueError for no facts, or for facts that take different numbers of tokens in this form.
    """
    told = [tinyworld.tell(fact, paraphrase, aside) for fact in facts]
    rows = [[tokenizer.bos, *(tokenizer.id(word) for word in s.words[: s.roles["END"] + 1])] for s in told]
    if len(places := {(len(row), s.roles["subject"]) for row, s in zip(rows, told, strict=True)}) != 1:
        raise ValueError(
            f"these facts do not have one form, but {len(places)}: ask about one relation, in one paraphrase"
        )
    last = told[0].roles["subject"] + 1
    answers = torch.tensor([tokenizer.id(fact.answer) for fact in facts])
    return Questions(torch.tensor(rows), answers, (last - 1, last), tuple(facts))


def strangers(
    tokenizer: Any, facts: Sequence[Fact], paraphrase: int = 0, aside: str = ""
) -> tuple[Questions, Questions]:
    """Questions and donors, row for row: each fact and the next one, where answers differ and no name is shared.

    With a name in common, moving the other one alone would make the donor of the recipient.
    """
    pairs = [
        (a, b)
        for a, b in zip(facts, [*facts[1:], *facts[:1]], strict=True)
        if a.answer != b.answer and not set(a.subject) & set(b.subject)
    ]
    ours, theirs = zip(*pairs, strict=True) if pairs else ((), ())
    return questions(tokenizer, ours, paraphrase, aside), questions(tokenizer, theirs, paraphrase, aside)


def with_interval(values: Float[Tensor, "n *rest"]) -> tuple[Tensor, Tensor]:
    """Mean over rows, and half the width of its 95 % interval (normal approximation)."""
    return values.mean(dim=0), 1.96 * values.std(dim=0) / math.sqrt(len(values))


def share(hits: Bool[Tensor, "n"]) -> tuple[float, float, float]:
    """A share with its 95 % interval (Wilson 1927), which is right for shares near 0 and 1, too."""
    n, z = len(hits), 1.96
    p = hits.double().mean().item()
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


# Causal tracing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """Probabilities of the right answer: clean, with a noised subject, and then with one place restored."""

    clean: Float[Tensor, "prompt"]
    corrupted: Float[Tensor, "prompt"]
    restored: Float[Tensor, "prompt layer pos"]

    @cached_property
    def indirect(self) -> Float[Tensor, "prompt layer pos"]:
        """The indirect effect of each place: restored minus corrupted. Its mean is Meng et al.'s AIE."""
        return self.restored - self.corrupted[:, None, None]

    @property
    def total(self) -> Float[Tensor, "prompt"]:
        return self.clean - self.corrupted


def trace(
    model: Transformer,
    q: Questions,
    site: str = "resid_pre",
    *,
    window: int = 1,
    samples: int = 8,
    scale: float = 3.0,
    seed: int = 0,
) -> Trace:
    """Noise on both words of the subject, `samples` draws for each prompt; then each layer and position restored.

    `site` and `window` are those of `Patching.sweep`: "resid_pre", or "mlp_out" and "attn_out" in windows of layers.
    """
    if model.attached:
        raise ValueError("hooks are attached to the model, and would be ignored here")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row, answer in zip(q.tokens, q.answers.tolist(), strict=True):
        clean = row.expand(samples, -1)
        where = torch.zeros_like(clean, dtype=torch.bool)
        where[:, list(q.subject)] = True
        noisy, corrupted = noised(model, clean, where, scale=scale, generator=generator)
        patching = Patching(noisy, clean, corrupted, probability(answer))
        rows.append((patching.clean, patching.corrupted, patching.sweep(site, ("layer", "pos"), window=window).raw))
    clean_p, corrupted_p, restored = zip(*rows, strict=True)
    return Trace(torch.tensor(clean_p), torch.tensor(corrupted_p), torch.stack(restored))


# Moving a fact -----------------------------------------------------------------------------------


@torch.no_grad()
def transplant(
    model: Transformer, recipients: Questions, donors: Questions, names: Iterable[str], positions: Sequence[int]
) -> Float[Tensor, "batch d_vocab"]:
    """The recipients' logits at END with the donors' activations, row for row, at these hooks and positions.

    Raises ValueError for questions of different forms.
    """
    forms = [f"{list(q.tokens.shape)} with the subject at {q.subject}" for q in (recipients, donors)]
    if forms[0] != forms[1]:
        raise ValueError(f"recipients are {forms[0]}, donors {forms[1]}: ask both in one form, row for row")
    names = list(names)
    _, cache = run_with_cache(model, donors.tokens, names)

    def put(x: Tensor, hook: Any) -> None:
        x[:, list(positions)] = cache[hook.name][:, list(positions)]

    with hooked(model, [(names, put)]):
        return recipients.asked(model)


@torch.no_grad()
def neuron_values(model: Transformer, layer: int) -> Float[Tensor, "neuron d_vocab"]:
    """What each neuron of a layer raises, per unit of activation: the `word_effects` of its row of W_out."""
    block: Any = model.blocks[layer]
    return word_effects(model, weights(block.mlp)["W_out"])


# Editing a fact ----------------------------------------------------------------------------------


@torch.no_grad()
def second_moment(model: Transformer, layer: int, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "d_mlp d_mlp"]:
    """The mean of k k^T over all tokens, k being an MLP's neurons: which keys are in use, and how much."""
    _, cache = run_with_cache(model, tokens, hook_name("post", layer), stop_at_layer=layer + 1)
    keys = cache["post", layer].flatten(0, 1)
    return keys.T @ keys / len(keys)


def wanted_change(
    model: Transformer,
    layer: int,
    q: Questions,
    target: int,
    *,
    keep: Sequence[Questions] = (),
    steps: int = 60,
    lr: float = 0.3,
    decay: float = 0.05,
) -> Float[Tensor, "d_model"]:
    """What an MLP would have to add at the subject's last word for `target` to be the answer, in all rows of q.

    Found by gradient: minus the log probability of the target, plus `decay` times the squared length relative to that
    of the MLP's present output, plus, for each of `keep`, other questions about the subject, KL(before || after) at
    their END. (ROME has one such term, for the prompt "... is a".)
    """
    name = hook_name("mlp_out", layer)
    with torch.no_grad():
        _, cache = run_with_cache(model, q.tokens, name, stop_at_layer=layer + 1)
    size = cache[name][:, q.subject[1]].norm(dim=1).mean()
    before = [other.asked(model).log_softmax(dim=1) for other in keep]
    change = torch.zeros(model.cfg.d_model, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=lr * size.item() / math.sqrt(model.cfg.d_model))

    def after(questions: Questions) -> Tensor:
        at = torch.zeros(questions.tokens.shape[1], 1)
        at[questions.subject[1]] = 1
        with hooked(model, [(name, lambda x, hook: x + at * change)]):
            return model(questions.tokens)[:, -1].log_softmax(dim=1)

    with torch.enable_grad():
        for _ in range(steps):
            loss = decay * (change / size).square().sum() - after(q)[:, target].mean()
            for other, log_p in zip(keep, before, strict=True):
                loss = loss + (log_p.exp() * (log_p - after(other))).sum(dim=1).mean()
            (change.grad,) = torch.autograd.grad(loss, [change])
            optimizer.step()
    return change.detach()


@torch.no_grad()
def rank_one_edit(
    model: Transformer,
    layer: int,
    key: Float[Tensor, "d_mlp"],
    change: Float[Tensor, "d_model"],
    moment: Float[Tensor, "d_mlp d_mlp"],
) -> Transformer:
    """A copy of the model whose MLP maps the key to its old output plus `change`, and other keys as before, nearly.

    W_out + u (x) change with u = C^-1 key / (key . C^-1 key): of all updates that do this for the key, the one that
    changes outputs least on average over keys of second moment C (Meng et al. 2022, equation 2).
    """
    ridge = 1e-4 * moment.diagonal().mean() * torch.eye(len(moment))
    direction = torch.linalg.solve(moment + ridge, key)
    edited = copy.deepcopy(model)
    block: Any = edited.blocks[layer]
    block.mlp.W_out += torch.outer(direction / (key @ direction), change)
    return edited


def rome(
    model: Transformer, layer: int, q: Questions, target: int, moment: Float[Tensor, "d_mlp d_mlp"], **options: Any
) -> Transformer:
    """The edit that makes `target` the answer to q, one fact in one form or several rows of it, at one layer's MLP."""
    change = wanted_change(model, layer, q, target, **options)
    _, cache = run_with_cache(model, q.tokens, hook_name("post", layer), stop_at_layer=layer + 1)
    return rank_one_edit(model, layer, cache["post", layer][:, q.subject[1]].mean(dim=0), change, moment)
