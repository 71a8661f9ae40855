"""The features of a language model: what a dictionary's latents stand for, scored against what is true.

In the course's world every token's truth is known: which word it is, which part it plays, what comes next and why. So
the usual question, what a latent means, becomes a measurement: how well does the best latent tell whether a variable
is true, beside the best neuron, a linear probe, and the same dictionary of a model that never learned anything?
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_edu import tinyworld
from interp_edu.hooks import HookFunction, hooked, run_with_cache
from interp_edu.logit_lens import word_effects
from interp_edu.sparse_autoencoders import SAE, firing_rates, l0, loss_recovered, variance_unexplained
from interp_edu.transformer import Transformer

# What is true of each token ------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Variables of one kind, such as the part that a token plays, and where it makes sense to ask for them.

    `where` are tokens, as indices into the flattened rows; `truth` says of each variable at which of them it holds.
    Which name is the indirect object is asked only of words at which it comes next: else a latent that tells nothing
    but that *some* name comes next would already score well.
    """

    what: str
    names: tuple[str, ...]
    where: Int[Tensor, "token"]
    truth: Bool[Tensor, "variable token"]


ROLES = {
    "indirect object": {"IO": "IO", "S1": "S1", "S1+1": "after S1", "S2": "S2", "END": "before IO"},
    "fact": {"subject": "subject", "END": "before answer"},
}


def labelled_rows(
    n: int, seed: int = 0, *, most: int = 12_000, least: int = 10
) -> tuple[Int[Tensor, "n pos"], list[Group]]:
    """n rows of the corpus, and their truth.

    A group with more than `most` tokens keeps that many, evenly spaced; variables that are true of fewer than `least`
    of them in one half of the rows are left out, and groups that have none left.
    """
    rng, rows = random.Random(f"labelled {seed}"), []
    facts: dict[str, list[tuple[int, str]]] = {}  # group: where, and which variable holds there

    def note(group: str, row: int, pos: int, value: str) -> None:
        if pos < tinyworld.N_CTX:
            facts.setdefault(group, []).append((row * tinyworld.N_CTX + pos, value))

    for row in range(n):
        words = [tinyworld.BOS]
        for sentence in tinyworld.row(rng, tinyworld.TOKENIZER):
            start = len(words)
            words += sentence.words
            for i, word in enumerate(sentence.words):
                note("kind of sentence", row, start + i, sentence.kind)
                note("word", row, start + i, word)
                note("position", row, start + i, f"{(start + i) // 8 * 8} to {(start + i) // 8 * 8 + 7}")
                named = ROLES.get(sentence.kind, {})
                role = next((named[key] for key, at in sentence.roles.items() if at == i and key in named), "none")
                note("role", row, start + i, role)
            _note_end(note, row, start, sentence)
        rows.append([tinyworld.TOKENIZER.ids[word] for word in words[: tinyworld.N_CTX]])
    groups = [_group(what, found, n, most, least) for what, found in facts.items()]
    return torch.tensor(rows), [group for group in groups if group.names]


def _note_end(note: Callable[[str, int, int, str], None], row: int, start: int, sentence: tinyworld.Sentence) -> None:
    """What is true where the answer comes next, and at the last word of a fact's subject."""
    if sentence.answer is None or sentence.kind == "third":
        return
    end = start + sentence.roles["END"]
    if sentence.fact is None:
        note("indirect object", row, end, sentence.answer)
        note("giver", row, end, sentence.words[sentence.roles["S2"]])
        note("opening", row, end, tinyworld.OPENINGS[sentence.template[0]])
        note("closing", row, end, tinyworld.CLOSINGS[sentence.template[1]])
        note("place told", row, end, next(w for w in reversed(sentence.words) if w in tinyworld.PLACES))
    else:
        note("relation", row, end, sentence.fact.relation)
        note("answer of a fact", row, end, sentence.fact.answer)
        note("subject of a fact", row, start + sentence.roles["subject"], " ".join(sentence.fact.subject))


def _group(what: str, found: list[tuple[int, str]], n: int, most: int, least: int) -> Group:
    if len(found) > most:
        found = [found[i] for i in torch.linspace(0, len(found) - 1, most).long().tolist()]
    values = [value for _, value in found]
    names = sorted({v for v in values if v != "none"})
    index = {name: i for i, name in enumerate(names)}
    truth = torch.zeros(len(names), len(values), dtype=torch.bool)
    for token, value in enumerate(values):
        if value in index:
            truth[index[value], token] = True
    whole = Group(what, tuple(names), torch.tensor([token for token, _ in found]), truth)
    enough = torch.stack([truth[:, half].sum(dim=1) >= least for half in halves(whole, n)]).all(dim=0)
    kept = tuple(name for name, keep in zip(names, enough.tolist(), strict=True) if keep)
    return Group(what, kept, whole.where, truth[enough])


# How well a number tells what is true ---------------------------------------------------------------


def midranks(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """The rank of each entry in its column, from 1; equal entries share the mean of their ranks."""
    ranks = torch.empty(x.T.shape, dtype=torch.float64)
    for i, column in enumerate(x.T.contiguous()):
        _, which, count = column.unique(return_inverse=True, return_counts=True)
        ranks[i] = (count.cumsum(dim=0) - (count - 1) / 2)[which]
    return ranks.T


def auroc(x: Float[Tensor, "n m"], truth: Bool[Tensor, "v n"]) -> Float[Tensor, "v m"]:
    """The probability that a number is larger where the variable is true than where it is not; equal ones count half.

    1/2 is what a number that knows nothing has. NaN for a variable that is true everywhere or nowhere.
    (The area under the ROC curve, by way of Mann and Whitney's statistic.)
    """
    ones = truth.sum(dim=1, keepdim=True).double()
    ranks = truth.double() @ midranks(x)
    return (ranks - ones * (ones + 1) / 2) / (ones * (truth.shape[1] - ones))


def best_threshold(x: Float[Tensor, "n v"], truth: Bool[Tensor, "v n"]) -> Float[Tensor, "v"]:
    """For each variable and its column the t for which "x >= t" has the highest F1."""
    values, order = x.sort(dim=0, descending=True)
    hits = truth.T.gather(0, order).cumsum(dim=0)
    f1 = 2 * hits / (torch.arange(1, len(x) + 1)[:, None] + truth.sum(dim=1))
    f1[:-1][values[:-1] == values[1:]] = -1.0  # no threshold lies between equal numbers
    return values.gather(0, f1.argmax(dim=0, keepdim=True))[0]


def f1_score(says: Bool[Tensor, "n v"], truth: Bool[Tensor, "v n"]) -> Float[Tensor, "v"]:
    """2 TP / (2 TP + FP + FN): the harmonic mean of precision and recall; 0 if there are no hits."""
    hits = (says & truth.T).sum(dim=0)
    return 2 * hits / (says.sum(dim=0) + truth.sum(dim=1)).clamp(min=1)


def linear_probes(
    x: Float[Tensor, "n d"], truth: Bool[Tensor, "v n"], ridge: float = 1e-3
) -> tuple[Float[Tensor, "d v"], Float[Tensor, "v"]]:
    """For each variable a direction and a bias, by least squares on 1 (true) and 0, with a small ridge."""
    mean, x = x.mean(dim=0), x - x.mean(dim=0)
    y = truth.T.float() - truth.float().mean(dim=1)
    covariance = x.T @ x / len(x)
    covariance += ridge * covariance.diagonal().mean() * torch.eye(x.shape[1])
    directions = torch.linalg.solve(covariance, x.T @ y / len(x))
    return directions, truth.float().mean(dim=1) - mean @ directions


@dataclass(frozen=True)
class Score:
    """For each variable of a group: the unit that tells it best on one half of the rows, judged on the other half."""

    group: Group
    unit: Int[Tensor, "variable"]
    auroc: Float[Tensor, "variable"]
    f1: Float[Tensor, "variable"]

    @property
    def monosemantic(self) -> float:
        """The share of variables that one unit tells with an F1 of at least 0.9."""
        return (self.f1 >= 0.9).double().mean().item()


def halves(group: Group, n_rows: int) -> tuple[Bool[Tensor, "token"], Bool[Tensor, "token"]]:
    """Which of the group's tokens stand in the first half of the rows, and which in the second."""
    first = group.where < n_rows // 2 * tinyworld.N_CTX
    return first, ~first


def latents_of(sae: SAE, x: Float[Tensor, "tokens d"], groups: Sequence[Group]) -> Float[Tensor, "tokens d_sae"]:
    """The latents of those tokens that some group asks about; the others, which nobody looks at, are left at zero."""
    asked = torch.cat([group.where for group in groups]).unique()
    f = torch.zeros(len(x), sae.d_sae)
    f[asked] = sae.encode(x[asked])
    return f


def score_units(x: Float[Tensor, "tokens unit"], group: Group, n_rows: int) -> Score:
    """The best unit for each variable, chosen by AUROC on the first half of the rows; scores are those on the second.

    `x` are all tokens' units: an SAE's latents, or [neurons, -neurons] if a unit may also speak by falling silent.
    """
    first, second = halves(group, n_rows)
    a, b = x[group.where[first]], x[group.where[second]]
    unit = auroc(a, group.truth[:, first]).nan_to_num(0).argmax(dim=1)
    return _judged(a[:, unit], b[:, unit], group, first, second, unit)


def score_probes(x: Float[Tensor, "tokens d"], group: Group, n_rows: int) -> Score:
    """The same for a linear probe of each variable, fitted on the first half: what can be read at all, linearly."""
    first, second = halves(group, n_rows)
    directions, _ = linear_probes(x[group.where[first]], group.truth[:, first])
    a, b = (x[group.where[half]] @ directions for half in (first, second))
    return _judged(a, b, group, first, second, torch.arange(len(group.names)))


def _judged(a: Tensor, b: Tensor, group: Group, first: Tensor, second: Tensor, unit: Tensor) -> Score:
    """Columns belong to variables here: thresholds from the first half, scores from the second."""
    truth = group.truth[:, second]
    own = torch.stack([auroc(b[:, [v]], truth[[v]])[0, 0] for v in range(len(truth))])
    f1 = f1_score(b >= best_threshold(a, group.truth[:, first]), truth)
    return Score(group, unit, own, f1)


# What a latent does ----------------------------------------------------------------------------------


@torch.no_grad()
def losses(
    model: Transformer, tokens: Int[Tensor, "batch pos"], site: str = "", hook: HookFunction | None = None
) -> float:
    """The mean loss per token, in nats, perhaps with a hook at a site."""
    with hooked(model, [(site, hook)] if hook else []):
        logits = model(tokens)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()


def replaced(by: Callable[[Tensor], Tensor] | Tensor, skip: int = 1) -> HookFunction:
    """A hook that replaces the activation by a function of it, such as an SAE, or by a fixed vector, from `skip` on."""

    def hook(x: Tensor, _: object) -> None:
        x[:, skip:] = by(x[:, skip:]) if callable(by) else by

    return hook


def set_latent(sae: SAE, latent: int, value: float | Callable[[Tensor], Tensor], skip: int = 1) -> HookFunction:
    """A hook that sets one latent, and changes x by what that changes: the SAE's error stays as it was.

    `value` is a number (0 ablates the latent; a large one steers), or a function of its activations [batch, pos].
    """

    def hook(x: Tensor, _: object) -> None:
        f = sae.encode(x)[..., latent]
        new = value(f) if callable(value) else torch.full_like(f, value)
        x[:, skip:] += ((new - f)[..., None] * sae.W_dec[latent])[:, skip:]

    return hook


@torch.no_grad()
def quality(
    model: Transformer, site: str, sae: SAE, tokens: Int[Tensor, "batch pos"], skip: int = 1
) -> dict[str, float]:
    """What is reported of an SAE: L0, FVU, dead latents on these tokens, and the model's losses with it in place.

    Keys: l0, variance_unexplained, dead; clean, spliced, zero, mean (losses in nats per token: as it is, with the SAE,
    and with the activation replaced by zero or by its mean); recovered_zero, recovered_mean (`loss_recovered`; NaN if
    that ablation does not hurt).
    """
    _, cache = run_with_cache(model, tokens, site)
    x = cache[site][:, skip:].flatten(0, 1)
    f = sae.encode(x)
    found = {"l0": l0(f), "variance_unexplained": variance_unexplained(x, sae.decode(f))}
    found["dead"] = int((firing_rates(f) == 0).sum())
    instead: dict[str, Callable[[Tensor], Tensor] | Tensor] = {"spliced": sae}
    for name, by in (instead | {"zero": torch.zeros(sae.d_in), "mean": x.mean(dim=0)}).items():
        found[name] = losses(model, tokens, site, replaced(by, skip))
    found["clean"] = losses(model, tokens)
    for ablated in ("zero", "mean"):
        hurts = found[ablated] > found["clean"]  # not so in a model that never learned anything
        recovered = loss_recovered(found["clean"], found["spliced"], found[ablated]) if hurts else float("nan")
        found[f"recovered_{ablated}"] = recovered
    return found


def family(small: SAE, large: SAE, least: float = 0.7) -> list[list[int]]:
    """For each latent of the smaller SAE those of the larger one whose directions have a cosine of `least` or more.

    Several of them are what Bricken et al. 2023 call feature splitting.
    """
    cosines = F.normalize(small.W_dec, dim=1) @ F.normalize(large.W_dec, dim=1).T
    return [(row >= least).nonzero().flatten().tolist() for row in cosines]


# A page about a latent -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A stretch of text with a latent's activation at each word; `at` is the word it was chosen for."""

    words: tuple[str, ...]
    activations: tuple[float, ...]
    at: int


@dataclass(frozen=True)
class Dashboard:
    """What one can know of a latent at a glance, for a viewer to show."""

    latent: int
    rate: float  # the share of tokens on which it is on
    histogram: tuple[int, ...]  # of activations above zero, in equal bins from 0 to `largest`
    largest: float
    examples: tuple[Example, ...]  # the highest, and then from lower parts of the range
    raises: tuple[tuple[str, float], ...]  # words that its direction raises most, by how much
    lowers: tuple[tuple[str, float], ...]


@torch.no_grad()
def dashboards(
    model: Transformer,
    site: str,
    sae: SAE,
    tokens: Int[Tensor, "batch pos"],
    latents: Sequence[int],
    *,
    top: int = 6,
    lower: int = 4,
    around: int = 8,
    bins: int = 20,
) -> Iterator[Dashboard]:
    """A dashboard for each of these latents, from what they do on these rows.

    Examples are the `top` highest activations, and `lower` ones at evenly spaced ranks below: the highest alone make a
    latent look more consistent than it is. (Bricken et al. 2023 show intervals for the same reason.)

    Raises ValueError if the site is not as wide as the stream: then no direction there can be read as words.
    """
    _, cache = run_with_cache(model, tokens, site)
    if cache[site].shape[-1] != model.cfg.d_model:
        raise ValueError(f"{site} has {cache[site].shape[-1]} dimensions and the stream {model.cfg.d_model}: no words")
    activations = torch.cat([sae.encode(part)[..., list(latents)] for part in cache[site].split(32)])
    pos = tokens.shape[1]
    words = [model.tokenizer.str_tokens(row) for row in tokens]
    effects = word_effects(model, sae.W_dec[list(latents)])
    activations[:, 0] = 0.0
    for latent, f, effect in zip(latents, activations.unbind(-1), effects, strict=True):
        order = f.flatten().argsort(descending=True)[: int((f > 0).sum())].tolist()
        below = torch.linspace(top, len(order) - 1, lower).long().tolist() if len(order) > top else []
        chosen = list(dict.fromkeys(order[:top] + [order[i] for i in below]))
        examples = []
        for token in chosen:
            row, at = divmod(token, pos)
            window = range(max(1, at - around), min(pos, at + around // 2 + 1))
            values = tuple(f[row, i].item() for i in window)
            examples.append(Example(tuple(words[row][i] for i in window), values, at - window.start))
        largest = f.max().item()
        counts = torch.histc(f[f > 0], bins=bins, min=0, max=largest or 1).int().tolist()
        ranked = effect.argsort(descending=True).tolist()
        told = [
            [(word, effect[i].item()) for i, word in zip(part, model.tokenizer.str_tokens(part), strict=True)]
            for part in (ranked[:8], ranked[:-9:-1])
        ]
        rate = (f[:, 1:] > 0).float().mean().item()
        yield Dashboard(latent, rate, tuple(counts), largest, tuple(examples), tuple(told[0]), tuple(told[1]))
