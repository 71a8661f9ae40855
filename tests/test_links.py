"""Every link in the hand-written pages leads somewhere: relative ones to a file and a heading, others are https."""

import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for pattern in ("README.md", "CONTRIBUTING.md", "book/*.md", "solutions/*.md") for page in ROOT.glob(pattern)
)

FENCE = re.compile(r"\s*(`{3,}|~{3,}|:{3,})(.*)")
CODE_DIRECTIVES = ("{code", "{math", "{mermaid", "{raw")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
FIGURE = re.compile(r"^\s*[`:]{3,}\{(?:figure|image|literalinclude|include)\}\s+(\S+)", re.M)
ROLE = re.compile(r"\{(?:download|doc)\}`[^`<]*<([^`>]+)>`")
HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"")
AUTOLINK = re.compile(r"<(https?://[^>\s]+)>")


def without_code(text: str) -> str:
    """The text without code, in which brackets are not links. Notes, figures and the like are fences too, and stay."""
    fences: list[tuple[str, bool]] = []  # the open ones: their marker, and whether they hold code
    kept = []
    for line in text.splitlines():
        marker, info = fence.groups() if (fence := FENCE.match(line)) else ("", "")
        if fences and marker.startswith(fences[-1][0]) and not info.strip():
            fences.pop()
        elif marker and not any(is_code for _, is_code in fences):
            fences.append((marker, not info.startswith("{") or info.startswith(CODE_DIRECTIVES)))
        elif not any(is_code for _, is_code in fences):
            kept.append(line)
    return "\n".join(kept)


def links(text: str) -> list[str]:
    """All link targets of a page.

    >>> links("[a](b.md#c), ![d](<e.png>), `[no](x)` and <https://f.org>")
    ['b.md#c', 'e.png', 'https://f.org']
    """
    text_only = without_code(text)
    prose = re.sub(r"`[^`\n]*`", "", text_only)
    found = [target for find in (LINK, HTML, AUTOLINK) for target in find.findall(prose)]
    return found + ROLE.findall(text_only) + FIGURE.findall(text)


def slug(heading: str) -> str:
    """The anchor that code hosts and MyST make of a heading: `slug("D* and `W`!") == "d-and-w"`."""
    text = unicodedata.normalize("NFKC", heading).strip().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text))


def anchors(text: str) -> set[str]:
    """The places in a page that a link can point to: headings, `(label)=`, `:name:` and `id="..."`."""
    return (
        {slug(heading) for heading in re.findall(r"^#{1,6}\s+(.+?)\s*$", without_code(text), re.M)}
        | set(re.findall(r"^\(([\w:.-]+)\)=", text, re.M))
        | set(re.findall(r"\b(?:id|name)=\"([^\"]+)\"", text))
        | set(re.findall(r"^:(?:label|name):\s*(\S+)", text, re.M))
    )


def file_of(page: Path, path: str) -> Path | None:
    """The file that a relative link means; in the book it may stand without its suffix."""
    # A chapter's page is published as the notebook generated from it, one folder further down.
    is_chapter = page.parent.name == "book" and re.match(r"ch\d\d_", page.name)
    folder = page.parent / "notebooks" if is_chapter else page.parent
    return next((f for suffix in ("", ".md", ".ipynb") if (f := folder / (path + suffix)).exists()), None)


def problem(page: Path, target: str) -> str | None:
    """What is wrong with a link, or None."""
    parts = urlsplit(target)
    if parts.scheme or target.startswith("//"):
        if parts.scheme == "mailto":
            return None if "@" in parts.path else "no address"
        return None if parts.scheme == "https" and "." in parts.netloc else "not a well-formed https link"
    found = file_of(page, unquote(parts.path)) if parts.path else page
    if found is None:
        return "no such file"
    source = found if found.suffix == ".md" else ROOT / "book" / f"{found.stem}.md"
    if parts.fragment and source.exists() and unquote(parts.fragment) not in anchors(source.read_text("utf-8")):
        return "no such heading or label"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    wrong = {target: why for target in links(page.read_text("utf-8")) if (why := problem(page, target))}
    assert not wrong


def test_the_checker_itself(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading\n\n(label)=\n")
    good = ["#a-heading", "#label", "page.md", "page#label", "https://example.org/x", "mailto:a@example.org"]
    bad = ["#other", "gone.md", "http://example.org", "https://nowhere", "page.md#gone"]
    assert not [target for target in good if problem(page, target)]
    assert not [target for target in bad if not problem(page, target)]
