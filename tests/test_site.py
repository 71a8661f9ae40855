"""The built site, seen by a browser: every page in both themes, on a desk and on a phone.

Needs Chromium and axe-core (`.ci/run` installs both). Where they are missing these tests are skipped; in CI they fail.
"""

import functools
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def toc_pages() -> list[str]:
    """The pages of the table of contents, without suffix."""

    def files(entry: object) -> Iterator[str]:
        if isinstance(entry, dict):
            yield from (value for key, value in entry.items() if key in ("root", "file"))
            entry = list(entry.values())
        for part in entry if isinstance(entry, list) else []:
            yield from files(part)

    return list(files(yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))))


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the freshly built site. A warning fails the build."""
    out = tmp_path_factory.mktemp("book")
    command = [Path(sys.executable).parent / "jupyter-book", "build", ROOT / "book", "--path-output", out]
    build = subprocess.run(
        [*command, "-W", "--keep-going", "-q"], capture_output=True, text=True, timeout=280, check=False
    )
    assert build.returncode == 0, build.stderr[-3000:]
    return out / "_build" / "html"


@pytest.fixture(scope="session")
def address(site) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=["light", "dark"])
def theme(request) -> str:
    return request.param


@pytest.fixture
def page(browser, address, theme) -> Iterator[Page]:
    """A tab in one theme. When the test is over, whatever went wrong in it fails the test."""
    context = browser.new_context(viewport=DESK, reduced_motion="reduce", base_url=address)
    context.set_default_timeout(20_000)
    context.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    page, wrong = context.new_page(), []

    def on_request(request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob") and f"{url.scheme}://{url.netloc}" != address:
            wrong.append(f"request to another host: {request.url}")

    page.on("request", on_request)
    page.on("requestfailed", lambda request: wrong.append(f"request failed: {request.url} {request.failure}"))
    page.on("response", lambda answer: answer.status >= 400 and wrong.append(f"{answer.status}: {answer.url}"))
    page.on("console", lambda line: line.type == "error" and wrong.append(f"console: {line.text}"))
    page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
    yield page
    context.close()
    assert not wrong


def visit(page: Page, name: str) -> None:
    """Open a page and wait until its mathematics is typeset."""
    page.goto(f"/{name}.html", wait_until="load")
    if page.locator(".math").count():
        page.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        page.evaluate("MathJax.startup.promise.then(() => {})")


# What sticks out of the window although nothing around it scrolls.
STICKING_OUT = """() => [...document.querySelectorAll('main *')].filter(e => {
    const box = e.getBoundingClientRect();
    if (box.width <= 1 || box.right <= innerWidth + 1) return false;
    for (let up = e; up && up.tagName !== 'MAIN'; up = up.parentElement) {
        const style = getComputedStyle(up);
        if (up !== e && /auto|scroll|hidden|clip/.test(style.overflowX)) return false;
        if (style.position === 'fixed' || style.visibility === 'hidden') return false;
    }
    return true;
}).map(e => e.outerHTML.slice(0, 120))"""

AXE = """() => axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})
    .then(found => found.violations.flatMap(rule => rule.nodes.map(node =>
        `${rule.id}: ${node.target.join(' ')}: ${node.failureSummary}`)))"""


@pytest.mark.parametrize("name", toc_pages())
def test_page(page, axe, theme, name):
    visit(page, name)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    if page.locator(".math").count():
        assert page.locator("mjx-container").count(), "MathJax has not typeset the page"
        assert not page.locator("[data-mjx-error]").count(), "MathJax does not understand a formula"

    page.evaluate(axe)
    violations = page.evaluate(AXE)
    assert not violations, "\n".join(violations)

    page.set_viewport_size(PHONE)
    page.wait_for_timeout(100)
    sticking_out = page.evaluate(STICKING_OUT)
    assert not sticking_out, "\n".join(sticking_out)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_search_finds_a_chapter(page):
    page.goto("/search.html?q=superposition", wait_until="load")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert any("ch02_superposition" in href for href in found)


def test_the_site_names_no_outside_script_or_style(site):
    """Also where no browser looks: on no page does a tag load anything from another host."""
    loads = re.compile(
        r"<(?:script|img|iframe|source|video|audio|embed)[^>]+src=\"(?:https?:)?//|<link[^>]+href=\"(?:https?:)?//"
    )
    assert [f"{p.name}: {m}" for p in site.rglob("*.html") for m in loads.findall(p.read_text("utf-8"))] == []
