"""What one can know of a latent at a glance: where it is on, how much, how often, and which words it speaks for."""

import hashlib
import html
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Protocol, runtime_checkable


@runtime_checkable
class Text(Protocol):
    """A stretch of text with a latent's activation at each word: chapter 11's `Example`."""

    @property
    def words(self) -> Sequence[str]: ...
    @property
    def activations(self) -> Sequence[float]: ...
    @property
    def at(self) -> int: ...  # the word that it was chosen for


@runtime_checkable
class Shown(Protocol):
    """What is shown of a latent: chapter 11's `Dashboard`."""

    @property
    def latent(self) -> int: ...
    @property
    def rate(self) -> float: ...  # the share of tokens on which it is on
    @property
    def histogram(self) -> Sequence[int]: ...  # of activations above 0, in equal bins up to `largest`
    @property
    def largest(self) -> float: ...
    @property
    def examples(self) -> Sequence[Text]: ...
    @property
    def raises(self) -> Sequence[tuple[str, float]]: ...
    @property
    def lowers(self) -> Sequence[tuple[str, float]]: ...


def dashboard_viewer(
    dashboards: Sequence[Shown],
    *,
    label: str,
    alt: str,
    titles: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
) -> str:
    """HTML that shows one latent at a time; the reader chooses which. Without scripts, all stand below each other.

    `label` is its title; `alt` tells those who cannot see it what it is; `titles` and `notes` are one for each latent.
    Raises ValueError for no latents, for numbers that cannot be, and for texts that do not match their activations.
    """
    if not dashboards:
        raise ValueError("there is no latent to show: give at least one dashboard")
    titles = [f"latent {shown.latent}" for shown in dashboards] if titles is None else titles
    notes = [""] * len(dashboards) if notes is None else notes
    for name, given in (("titles", titles), ("notes", notes)):
        if len(given) != len(dashboards):
            raise ValueError(f"{name} must be {len(dashboards)}, one for each latent: got {len(given)}")
    for shown in dashboards:
        refuse_unless_sound(shown)
    panels = "\n".join(_panel(*three) for three in zip(dashboards, titles, notes, strict=True))
    name = "ie-" + hashlib.sha256("\0".join([panels, label, alt]).encode()).hexdigest()[:8]
    tabs = "\n".join(
        f'<label><input type="radio" name="{name}-latent" value="{i}" autocomplete="off" '
        f'data-lm-suppress-shortcuts="true"{" checked" if i == 0 else ""}>{html.escape(title)}</label>'
        for i, title in enumerate(titles)
    )
    template = Template((Path(__file__).parent / "dashboard.html").read_text(encoding="utf-8"))
    return template.substitute(id=name, tabs=tabs, panels=panels, label=html.escape(label), alt=html.escape(alt))


def dashboard_page(viewer: str, title: str) -> str:
    """The HTML of a small page of its own around a viewer, light or dark as the browser prefers."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<style>:root { color-scheme: light dark; }\n"
        "body { margin: 1rem; font: 1rem system-ui, sans-serif; color: CanvasText; background: Canvas; }</style>\n"
        f"</head>\n<body>\n<main>\n{viewer}</main>\n</body>\n</html>\n"
    )


def save_page(path: str | Path, viewer: str, title: str) -> None:
    """Writes a viewer as a page of its own, to be opened in a browser: `save_page("latents.html", viewer, "Six")`."""
    Path(path).write_text(dashboard_page(viewer, title), encoding="utf-8")


def refuse_unless_sound(shown: Shown) -> None:
    """Raises ValueError unless a dashboard's numbers are finite and agree with each other."""
    who = f"latent {shown.latent}"
    numbers = [shown.rate, shown.largest, *shown.histogram, *(x for _, x in (*shown.raises, *shown.lowers))]
    for example in shown.examples:
        words = len(example.words)
        if len(example.activations) != words:
            raise ValueError(f"{who}: one activation for each word: got {len(example.activations)} for {words} words")
        if not 0 <= example.at < words:
            raise ValueError(f"{who}: at must be from 0 to {words - 1} in a text of {words} words: got {example.at}")
        numbers += example.activations
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{who}: all numbers must be finite; look for NaN or infinity in the model or the latents")
    if not 0 <= shown.rate <= 1:
        raise ValueError(f"{who}: rate must be a share, from 0 to 1: got {shown.rate:g}")
    if any(count < 0 for count in shown.histogram):
        raise ValueError(f"{who}: histogram must be counts, none below 0: got {[*shown.histogram]}")
    activations = [x for example in shown.examples for x in example.activations]
    least, most = min(activations, default=0.0), max(activations, default=0.0)
    if least < 0:
        raise ValueError(f"{who}: activations must be 0 or more, as a latent's are: got {least:g}")
    if most > shown.largest:
        raise ValueError(f"{who}: largest must be that of all texts, here at least {most:g}: got {shown.largest:g}")


def _panel(shown: Shown, title: str, note: str) -> str:
    often = f"On at {_percent(shown.rate)} of the tokens." if shown.rate else "Never on in these texts."
    told = (("raises", shown.raises), ("lowers", shown.lowers))
    lists = "".join(f"<dt>its direction {what}</dt><dd>{_effects(found)}</dd>" for what, found in told if found)
    parts = [
        f'<section aria-label="{html.escape(title)}">',
        f'<p class="ie-head"><b>{html.escape(title)}</b> {often}</p>',
        f"<p>{html.escape(note)}</p>" if note else "",
        f'<div class="ie-facts">\n{_histogram(shown)}<dl>{lists}</dl>\n</div>',
        '<p class="ie-said"></p>' if shown.examples else "",
        f'<div class="ie-texts" data-most="{_number(shown.largest)}">' if shown.examples else "",
        *(_example(example, shown.largest) for example in shown.examples),
        "</div>" if shown.examples else "",
        "</section>",
    ]
    return "\n".join(filter(None, parts))


def _histogram(shown: Shown) -> str:
    counts, n, tallest = list(shown.histogram), len(shown.histogram), max(shown.histogram, default=0)
    if not tallest:
        return ""
    # A bin with anything in it shows: at least as high as a hair.
    heights = [max(30 * count / tallest, 0.6) if count else 0.0 for count in counts]
    bars = "".join(
        f'<rect x="{100 * i / n:.4g}" y="{30 - height:.4g}" width="{90 / n:.4g}" height="{height:.4g}"/>'
        for i, height in enumerate(heights)
        if height
    )
    top, commonest = _number(shown.largest), _number((counts.index(tallest) + 0.5) * shown.largest / n)
    told = (
        f"Histogram of {sum(counts)} activations above 0, most common near {commonest}. "
        f"Counts in {n} equal bins up to {top}: {', '.join(map(str, counts))}"
    )
    return (
        f'<figure><svg viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label="{told}">{bars}</svg>\n'
        f"<figcaption><span>0</span><span>{sum(counts):,} activations above 0</span><span>{top}</span></figcaption>"
        "</figure>\n"
    )


def _example(example: Text, largest: float) -> str:
    # Tokens such as GPT-2's bring their spaces; words such as the course's stand apart without.
    spaced = any(word.startswith(" ") for word in example.words)
    pieces: list[str] = []
    for i, (word, activation) in enumerate(zip(example.words, example.activations, strict=True)):
        on = f' title="{_number(activation)}" style="--on:{activation / largest:.2f}"' if activation > 0 else ""
        chosen = ' class="ie-at"' if i == example.at else ""
        apart = " " if pieces and (not spaced or word[:1].isspace()) else ""
        pieces.append(f"{apart}<span{chosen}{on}>{_seen(word)}</span>")
    return f"<div><span>{_number(example.activations[example.at])}</span><span>{''.join(pieces)}</span></div>"


def _effects(found: Sequence[tuple[str, float]]) -> str:
    """Each word stays on the line of its number, and negative ones have a minus rather than a hyphen."""
    return ", ".join(f"{_seen(word)}\u00a0{x:+.2f}".replace("\u00a0-", "\u00a0\u2212") for word, x in found)


def _seen(word: str) -> str:
    """A word as one can see it, also if it is a line's end or a space, and as HTML takes it."""
    return html.escape(word.strip() or ("\u21b5" if "\n" in word else "\u2423"))


def _number(x: float) -> str:
    """To the hundredth; a small number with its first digit, since 0.00 would be off."""
    return "0" if x == 0 else f"{x:.2f}" if abs(x) >= 0.01 else f"{x:.1g}"


def _percent(share: float) -> str:
    """From 10 % on without decimals, below with two digits, and neither end by rounding alone."""
    p = 100 * share
    if 99.5 <= p < 100:
        return "more than 99 %"
    if 0 < p < 0.01:
        return "less than 0.01 %"
    return f"{p:.0f} %" if p >= 9.95 else f"{p:.2g} %"
