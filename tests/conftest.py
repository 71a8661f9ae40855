"""A browser for the tests that look at pages, and the kill table of the wrong-answer banks.

A session's fixtures live here, once: Playwright refuses a second browser in the process of the first.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing(what: str) -> None:
    """Skip with a reason; in CI, fail."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"THE SITE WAS NOT TESTED: {what}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        missing("no Chromium on this machine (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    path = Path(os.environ.get("AXE_CORE") or Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js")
    if not path.exists():
        missing("no axe-core (npm install --no-save --prefix .venv axe-core)")
    return path.read_text("utf-8")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a worker takes at a time: a file; of what takes longest, the banks and whole notebooks, a chapter."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        chapter = params.get("topic") or params.get("stem")
        item.add_marker(pytest.mark.xdist_group(f"{item.path.name} {chapter}"))


def pytest_terminal_summary(terminalreporter):
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = sorted(value for r in reports for key, value in getattr(r, "user_properties", []) if key == "bank")
    if not rows:
        return
    terminalreporter.section("wrong-answer bank")
    for topic, name, killed, wrong, accepted, right in rows:
        terminalreporter.line(
            f"{topic:<22}{name:<26}{killed:>4} of {wrong:<4} wrong rejected  {accepted:>4} of {right:<4} right accepted"
        )
    killed, wrong, accepted, right = (sum(row[k] for row in rows) for k in range(2, 6))
    terminalreporter.line(
        f"kill rate {killed / wrong:.0%} ({killed} of {wrong}), accepted {accepted / right:.0%} ({accepted} of {right})"
    )
