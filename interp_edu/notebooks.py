"""From the hand-written sources to the committed notebooks: `python -m interp_edu notebooks`.

    book/chNN_topic.md       -> book/notebooks/chNN_topic.ipynb   executed
    solutions/chNN_topic.md  -> solutions/chNN_topic.ipynb        executed
                             -> exercises/chNN_topic.ipynb        solutions cut out, no outputs

Sources are MyST notebooks (jupytext's `md:myst`). In their text `{glue:text}` is replaced by the value
that a cell glued, and a `{literalinclude}` with `:pyobject:` by the code it names, so that a notebook
reads the same in the book, on a code host and in Jupyter. Every notebook carries the hash of its
content: whatever somebody changed in it is seen, and never overwritten without a copy.
"""

import ast
import hashlib
import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
CHECK_CALL = re.compile(r"^[ \t]*(?:_ = )?check\.(\w+)\(", re.MULTILINE)
GLUE = re.compile(r"\{glue:text\}`(\w+)(?::([^`\s]+))?`")
INCLUDE = re.compile(r"```\{literalinclude\} (\S+)\n:pyobject: ([\w.]+)\n```")
Notebook = dict[str, Any]
SECONDS_PER_CHAPTER = 90.0  # of processor time; what needs more is trained by a recipe and shipped in weights/


class SourceError(ValueError):
    """A source cannot become a notebook: the message says where and why."""


def glue(name: str, value: object) -> None:
    """Makes a computed value available to the text around: `glue("d_star", 0.98)`, then {glue:text}`d_star:.2f`.

    The mime type is the one of myst-nb and papermill, which shows nothing on the page.
    """
    from IPython.display import display

    if isinstance(value, float):
        value = float(f"{value:.6g}")
    data = {"application/papermill.record/text/plain": repr(value)}
    display(data, metadata={"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}, raw=True)


def sources(names: list[str] | None = None) -> list[Path]:
    """The hand-written chapters and solutions, or those of the stems named (`ch02`, or the whole stem)."""
    found = [path for folder in ("book", "solutions") for path in sorted((REPO / folder).glob("ch[0-9][0-9]_*.md"))]
    if not names:
        return found
    chosen = [path for path in found if any(path.stem.startswith(name) for name in names)]
    if not chosen:
        raise SourceError(
            f"no source is called {' or '.join(names)}: there are {', '.join(sorted({p.stem for p in found}))}"
        )
    return chosen


def target(source: Path) -> Path:
    """The executed notebook that a source becomes."""
    return source.parent / ("notebooks" if source.parent.name == "book" else "") / f"{source.stem}.ipynb"


def generate(names: list[str] | None = None) -> None:
    """Remakes the notebooks of all sources, or of those named, and says what it did with each."""
    for source in sources(names):
        notebook = seal(expand(execute(parse(source), source), source))
        write(target(source), notebook, keep_edits=False)
        if source.parent.name == "solutions":
            write(REPO / "exercises" / target(source).name, seal(strip(notebook, source)), keep_edits=True)


def problems() -> list[str]:
    """What is wrong with the committed notebooks, a line each with the command that mends it. Runs no code."""
    found = []
    for source in sources():
        path, remake = target(source), f"run `make notebooks ONLY={source.stem}`"
        name = path.relative_to(REPO).as_posix()
        try:
            if not path.exists():
                found.append(f"{name} is missing: {remake}")
                continue
            stored = read(path)
            fresh = parse(source)
            for cell, old in zip(fresh["cells"], stored["cells"], strict=False):
                if cell["cell_type"] == "code":
                    cell["outputs"] = old.get("outputs", [])
                    cell["execution_count"] = old.get("execution_count")
            fresh = seal(expand(fresh, source))
            if is_edited(stored):
                found.append(
                    f"{name} was edited by hand: change {source.relative_to(REPO).as_posix()} instead, then {remake}"
                )
            elif dumps(fresh) != dumps(stored):
                found.append(f"{name} is stale, its source has changed: {remake}")
            if source.parent.name == "solutions":
                found += _exercise_problems(REPO / "exercises" / path.name, dumps(seal(strip(fresh, source))), remake)
        except SourceError as error:
            found.append(str(error))
    return found


def _exercise_problems(path: Path, fresh: str, remake: str) -> list[str]:
    name = path.relative_to(REPO).as_posix()
    if not path.exists():
        return [f"{name} is missing: {remake}"]
    if is_edited(read(path)):
        return [f"{name} holds somebody's answers. They are kept; for a fresh copy rename the file, then {remake}"]
    return [] if path.read_text(encoding="utf-8") == fresh else [f"{name} is stale: {remake}"]


# The steps --------------------------------------------------------------------------------------


def parse(source: Path) -> Notebook:
    """A source as a notebook without outputs: stable cell ids, and nbgrader's metadata where it belongs."""
    import jupytext

    notebook = json.loads(json.dumps(jupytext.read(source, fmt="md:myst")))
    chapter = source.stem.split("_")[0]
    group: list[Notebook] = []  # the code cells since the last check: they belong to the next one
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"{chapter}-{number:03d}"
        if cell["cell_type"] != "code":
            continue
        _check_markers(cell["source"], f"{source.name}, cell {number}")
        group.append(cell)
        if called := CHECK_CALL.findall(cell["source"]):
            for place, member in enumerate(c for c in group if BEGIN in c["source"]):
                member["metadata"]["nbgrader"] = _nbgrader(f"{called[-1]}-{place}", solution=True)
            cell["metadata"]["nbgrader"] = _nbgrader(f"check-{called[-1]}", solution=False)
            group = []
    return notebook


def _nbgrader(grade_id: str, *, solution: bool) -> dict[str, Any]:
    points: dict[str, Any] = {} if solution else {"points": 1}
    common = {"grade_id": grade_id, "schema_version": 3, "cell_type": "code", "task": False}
    return {**common, "grade": not solution, "locked": not solution, "solution": solution, **points}


def _check_markers(source: str, where: str) -> None:
    inside = False
    for line in source.splitlines():
        marker = line.strip()
        if marker in (BEGIN, END):
            if inside == (marker == BEGIN):
                raise SourceError(f"{where}: '{marker}' without its counterpart; the markers must alternate")
            inside = marker == BEGIN
        elif "SOLUTION" in marker and marker.startswith("#"):
            raise SourceError(f"{where}: '{marker}' looks like a marker but is not exactly '{BEGIN}' or '{END}'")
    if inside:
        raise SourceError(f"{where}: '{BEGIN}' without '{END}'")


def execute(notebook: Notebook, source: Path) -> Notebook:
    """The notebook with its outputs, run from its folder. Errors, stderr and lengthy training stop the making."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    node = nbformat.from_dict(notebook)
    client = NotebookClient(
        node,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,  # how a line is cut into messages depends on the machine's load
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": source.parent}},
    )
    before = os.times()
    try:
        client.execute()
    except CellExecutionError as error:
        raise SourceError(f"{source.name} does not run: {error}") from None
    after = os.times()  # the kernel has ended, so its time is among the children's
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    if spent > SECONDS_PER_CHAPTER:
        raise SourceError(
            f"{source.name} computes for {spent:.0f} s, more than {SECONDS_PER_CHAPTER:g}: ship weights instead"
        )
    for cell in node["cells"]:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise SourceError(f"{source.name}: the cell {cell['id']} writes to stderr:\n{output['text']}")
    return json.loads(json.dumps(node))


def expand(notebook: Notebook, source: Path) -> Notebook:
    """Puts glued values and included code into the text, and glued values into figures' captions and alt texts."""
    glued: dict[str, str] = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if scrap := output.get("metadata", {}).get("scrapbook"):
                glued[scrap["name"]] = output["data"]["application/papermill.record/text/plain"]

    def value(match: re.Match[str]) -> str:
        name, spec = match.groups()
        if name not in glued:
            raise SourceError(f"{source.name}: {{glue:text}}`{name}` is used, but no cell glues {name!r}")
        stored = ast.literal_eval(glued[name])
        return format(stored, spec) if spec else str(stored)

    def code(match: re.Match[str]) -> str:
        return f"```python\n{_definition((target(source).parent / match[1]).resolve(), match[2])}\n```"

    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = INCLUDE.sub(code, GLUE.sub(value, cell["source"]))
            for left in ("{glue:", "{literalinclude}"):
                if left in cell["source"]:
                    raise SourceError(f"{source.name}, {cell['id']}: a {left}… that is not written as it should be")
        shown = cell["metadata"].get("mystnb", {})  # a figure may be told in numbers, too
        for part, key in (("figure", "caption"), ("image", "alt")):
            if key in shown.get(part, {}):
                shown[part][key] = GLUE.sub(value, shown[part][key])
                if "{glue:" in shown[part][key]:
                    raise SourceError(
                        f"{source.name}, {cell['id']}: a {{glue:… in the {key} is not written as it should be"
                    )
    return notebook


def _definition(path: Path, name: str) -> str:
    """The source of a function, a class or a method (`Block.run`)."""
    text = path.read_text(encoding="utf-8")
    node: ast.AST | None = ast.parse(text)
    for part in name.split("."):
        inside = ast.walk(node) if node else iter(())
        node = next((n for n in inside if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part), None)
    if node is None:
        raise SourceError(f"{path.name} defines no {name}")
    return textwrap.dedent(ast.get_source_segment(text, node, padded=True) or "")


def strip(notebook: Notebook, source: Path) -> Notebook:
    """The exercises: solutions cut out of the cells, cells tagged `solution` and all outputs dropped."""
    cells = []
    for cell in json.loads(json.dumps(notebook["cells"])):
        if "solution" in cell["metadata"].get("tags", []):
            continue
        cell["metadata"].pop("tags", None)
        if cell["cell_type"] == "code":
            cell["source"] = stub(cell["source"])
            cell["outputs"], cell["execution_count"] = [], None
        else:
            cell["source"] = cell["source"].replace(": solutions\n", ": exercises\n", 1)
        cells.append(cell)
    return {**notebook, "cells": cells, "metadata": {}}


def stub(source: str) -> str:
    """The cell as the learner gets it. Inside a function a stub says that it is not implemented yet."""
    lines, inside = [], False
    for line in source.splitlines():
        if line.strip() == BEGIN:
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f"{indent}# YOUR CODE HERE")
            if indent:
                lines.append(f"{indent}raise NotImplementedError()")
        elif line.strip() == END:
            inside = False
        elif not inside:
            lines.append(line)
    return "\n".join(lines)


# Files ------------------------------------------------------------------------------------------


def content_hash(notebook: Notebook) -> str:
    """A hash of what somebody could change: the cells with their sources, tags and outputs.

    Opening and saving a notebook in Jupyter, which rewrites its other metadata, does not count as a change.
    """
    keys = ("cell_type", "source", "outputs")
    cells = [[cell.get(key) for key in keys] for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()[:16]


def is_edited(notebook: Notebook) -> bool:
    """Whether somebody changed a generated notebook; one without our hash counts as changed."""
    return notebook["metadata"].get("interp_edu", {}).get("content") != content_hash(notebook)


def has_new_work(notebook: Notebook) -> bool:
    """Whether sources were changed or cells added. Outputs alone can be had again by running the cells."""
    return notebook["metadata"].get("interp_edu", {}).get("sources") != _sources_hash(notebook)


def _sources_hash(notebook: Notebook) -> str:
    cells = [[cell["cell_type"], cell["source"]] for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def seal(notebook: Notebook) -> Notebook:
    """Leaves a minimal block of metadata and writes down the hashes of the content."""
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    hashes = {"content": content_hash(notebook), "sources": _sources_hash(notebook)}
    metadata = {"interp_edu": hashes, "kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": notebook["cells"], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def read(path: Path) -> Notebook:
    """A notebook from disk, with multi-line strings joined. Unreadable: a SourceError that says what to do."""
    import nbformat

    try:
        return json.loads(json.dumps(nbformat.read(path, as_version=4)))
    except Exception as error:
        raise SourceError(f"{path} is not a notebook any more ({type(error).__name__}): restore or delete it") from None


def dumps(notebook: Notebook) -> str:
    """The text of a notebook's file, the same for the same notebook."""
    import nbformat

    return nbformat.writes(nbformat.from_dict(notebook)) + "\n"


def write(path: Path, notebook: Notebook, *, keep_edits: bool) -> None:
    """Writes a generated notebook. What somebody changed in the old one is kept: there, or else in a copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, text = path.relative_to(REPO).as_posix() if path.is_relative_to(REPO) else str(path), dumps(notebook)
    if path.exists():
        if path.read_text(encoding="utf-8") == text:
            print(f"unchanged  {name}")
            return
        if has_new_work(read(path)):
            if keep_edits:
                print(f"KEPT       {name} holds somebody's answers. For a fresh copy, rename it and run this again.")
                return
            copies = (path.with_suffix(f".edited{number}.ipynb") for number in ("", *range(2, 1000)))
            copy = next(copy for copy in copies if not copy.exists())
            path.rename(copy)
            print(f"saved      {name} had been edited by hand: the old one is now {copy.name}")
    path.write_text(text, encoding="utf-8")
    print(f"wrote      {name}")
