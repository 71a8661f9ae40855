"""`python -m interp_edu check 2`: a learner's whole notebook, judged without trusting its code.

The cells run in a process of their own. Code that raises costs its exercise; code that loops for ever,
floods the output or ends the process has that process killed, and a new one runs the other cells.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from interp_edu.notebooks import CHECK_CALL, Notebook, read

IMPORT = re.compile(r"^from interp_edu\.checks import (\w+)", re.MULTILINE)

SECONDS_PER_CELL = 60.0
SECONDS_TO_START = 180.0  # importing torch on a cold and busy machine
OUTPUT_PER_CELL = 2_000_000  # bytes; the largest honest output is a few kilobytes


@dataclass
class Line:
    """One exercise in the report. `outcome` is passed, failed or not attempted."""

    title: str
    name: str
    outcome: str = "not attempted"
    text: str = ""


def check_notebook(path: Path, *, seconds: float = SECONDS_PER_CELL) -> list[Line]:
    """Runs a notebook of exercises; a line for each check, in order.

    Raises ValueError if `seconds`, the time a cell may take, is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"a cell needs time to run: seconds must be positive, not {seconds:g}")
    notebook = read(path)
    cells = [(n, cell["source"]) for n, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]
    lines = _exercises(notebook)
    owner = _owners(cells)
    trouble: dict[str, str] = {}  # an exercise's first trouble outside its check
    decided: set[str] = set()  # exercises whose check spoke
    dead: set[int] = set()  # cells that took the process down: not run again
    done: set[int] = set()  # checks that were decided and define nothing: they need not run again
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
                    decided.add(key)
                if _only_checks(dict(cells)[event["cell"]]):
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
        if name in lines and name not in decided:
            lines[name].outcome, lines[name].text = "failed", f"✗ {name}: {text}"
    return list(lines.values())


def _exercises(notebook: Notebook) -> dict[str, Line]:
    """The checks that a notebook calls, each under the last heading before it."""
    lines: dict[str, Line] = {}
    title, sources = "", []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            headings = [line.lstrip("# ") for line in cell["source"].splitlines() if re.match(r"## \d+\.\d", line)]
            title = headings[-1] if headings else title
        elif cell["cell_type"] == "code":
            sources.append(cell["source"])
            for name in CHECK_CALL.findall(cell["source"]):
                lines.setdefault(name, Line(title, name))
    for name in _defined("\n".join(sources)):
        lines.setdefault(name, Line(f"{name}: the cell that checks it is missing", name))
    return lines


def _defined(code: str) -> list[str]:
    """The exercises of the check module that the notebook imports."""
    found = IMPORT.search(code)
    path = Path(__file__).with_name(f"{found[1]}.py") if found else Path(__file__)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return re.findall(r"^@exercise\(.*\)\ndef (\w+)", text, re.MULTILINE)


def _only_checks(source: str) -> bool:
    return all(CHECK_CALL.match(line) or line.lstrip().startswith("#") for line in source.splitlines() if line.strip())


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
        fatal, seen, since, before, allowed = "", 0, time.monotonic(), 0, max(seconds, SECONDS_TO_START)
        with out.open(encoding="utf-8") as results:
            lines: list[str] = []
            while True:
                ended = process.poll() is not None
                lines += results.readlines()
                if len(lines) > seen:
                    seen, since, before, allowed = len(lines), time.monotonic(), printed[0], seconds
                if ended or seen == 2 * len(job):  # threads that the learner's code left behind are not waited for
                    break
                if time.monotonic() - since > allowed:
                    fatal = f"ran for more than {seconds:g} seconds: does it loop for ever?"
                elif printed[0] - before > OUTPUT_PER_CELL:
                    fatal = f"printed more than {OUTPUT_PER_CELL // 1_000_000} MB"
                if fatal:
                    break
                time.sleep(0.02)
            _kill(process)
            lines += results.readlines()
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
    """Ends the process and, where that can be done, all processes that the learner's code started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
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
