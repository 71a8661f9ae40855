"""`python -m interp_edu check 2`: a learner's whole notebook, judged without trusting its code.

The cells run in a process of their own. Code that raises costs its exercise; code that loops for ever,
floods the output or ends the process has that process killed, and a new one runs the other cells.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from interp_edu.notebooks import CHECK_CALL, Notebook, read

SECONDS_PER_CELL = 60.0
OUTPUT_PER_CELL = 2_000_000  # bytes; the largest honest output is a few kilobytes


@dataclass
class Line:
    """One exercise in the report. `outcome` is passed, failed or not attempted."""

    title: str
    name: str
    outcome: str = "not attempted"
    text: str = ""


def check_notebook(path: Path, *, seconds: float = SECONDS_PER_CELL) -> list[Line]:
    """Runs a notebook of exercises; a line for each check it calls, in order."""
    notebook = read(path)
    cells = [(n, cell["source"]) for n, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]
    lines = _exercises(notebook)
    owner = _owners(cells)
    trouble: dict[str, str] = {}  # an exercise's first trouble outside its check
    dead: set[int] = set()  # cells that took the process down: not run again
    done: set[int] = set()  # checks that were decided: they define nothing, so need not run again
    while True:
        job = [(n, source) for n, source in cells if n not in dead and n not in done]
        events, fatal = _run(job, seconds)
        for event in events:
            if event["event"] == "start":
                last = event["cell"]
                continue
            name = owner.get(event["cell"])
            for key, (outcome, text) in event["results"].items():
                if key in lines:
                    lines[key].outcome, lines[key].text = outcome, text
                done.add(event["cell"])
            if event["trouble"] and not event["results"] and name:
                trouble.setdefault(name, event["trouble"])
        if not fatal:
            break
        if not events:
            raise RuntimeError(f"the checks could not be started: {fatal}")
        dead.add(last)
        if owner.get(last):
            trouble.setdefault(owner[last], fatal)
    for name, text in trouble.items():
        if name in lines and lines[name].outcome == "not attempted":
            lines[name].outcome, lines[name].text = "failed", f"✗ {name}: {text}"
    return list(lines.values())


def _exercises(notebook: Notebook) -> dict[str, Line]:
    """The checks that a notebook calls, each under the last heading before it."""
    lines, title = {}, ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            headings = [line.lstrip("# ") for line in cell["source"].splitlines() if line.startswith("## ")]
            title = headings[-1] if headings else title
        elif cell["cell_type"] == "code":
            for name in CHECK_CALL.findall(cell["source"]):
                lines[name] = Line(title, name)
    return lines


def _owners(cells: list[tuple[int, str]]) -> dict[int, str]:
    """The exercise that a cell belongs to: that of the next check."""
    owner, group = {}, []
    for number, source in cells:
        group.append(number)
        if called := CHECK_CALL.findall(source):
            owner.update(dict.fromkeys(group, called[0]))
            group = []
    return owner


def _run(job: list[tuple[int, str]], seconds: float) -> tuple[list[dict], str]:
    """Runs cells in a new process: what it told, and why it was stopped or ended early, if so."""
    with tempfile.TemporaryDirectory() as folder:
        cells, out = Path(folder, "cells.json"), Path(folder, "results.jsonl")
        cells.write_text(json.dumps(job), encoding="utf-8")
        out.touch()
        process = subprocess.Popen(
            [sys.executable, "-m", "interp_edu.checks.worker", str(cells), str(out)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"MPLBACKEND": "agg"},  # no window opens
            start_new_session=True,
        )
        printed = [0]
        tail = bytearray()

        def count() -> None:
            assert process.stdout
            while block := os.read(process.stdout.fileno(), 65536):
                printed[0] += len(block)
                tail[:] = (tail + block)[-2000:]

        reader = threading.Thread(target=count, daemon=True)
        reader.start()
        fatal, seen, since, before = "", 0, time.monotonic(), 0
        with out.open(encoding="utf-8") as results:
            lines: list[str] = []
            while True:
                ended = process.poll() is not None
                lines += results.readlines()
                if len(lines) > seen:
                    seen, since, before = len(lines), time.monotonic(), printed[0]
                if ended:
                    break
                if time.monotonic() - since > seconds:
                    fatal = f"ran for more than {seconds:g} seconds: does it loop for ever?"
                elif printed[0] - before > OUTPUT_PER_CELL:
                    fatal = f"printed more than {OUTPUT_PER_CELL // 1_000_000} MB"
                if fatal:
                    _kill(process)
                    break
                time.sleep(0.02)
        process.wait()
        reader.join(timeout=1)
        events = [json.loads(line) for line in lines]
        finished = bool(events) and events[-1]["event"] == "end" and events[-1]["cell"] == job[-1][0]
        if not fatal and job and not finished:
            fatal = f"ended the Python process (exit code {process.returncode})"
            if not events:
                fatal += ": " + tail.decode(errors="replace")
        return events, fatal


def _kill(process: subprocess.Popen) -> None:
    if hasattr(os, "killpg"):  # with all processes that the learner's code started
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def table(lines: list[Line]) -> str:
    """The report as text: a row for each exercise, the counts, then the feedback for what failed."""
    sign = {"passed": "✓", "failed": "✗", "not attempted": "·"}
    width = max((len(line.title) for line in lines), default=0)
    rows = [f"  {sign[line.outcome]} {line.title:<{width}}  {line.outcome}" for line in lines]
    feedback = [line.text for line in lines if line.outcome == "failed"]
    return "\n".join([*rows, "", f"  {counts(lines)}", *(f"\n{text}" for text in feedback)])


def counts(lines: list[Line]) -> str:
    """For example `3 passed, 1 failed, 7 not attempted`."""
    return ", ".join(
        f"{sum(line.outcome == kind for line in lines)} {kind}" for kind in ("passed", "failed", "not attempted")
    )
