"""The house keeps its shape: imports go down the ladder, every chapter has its parts, nothing is edited by hand."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from interp_edu import CHAPTERS, stem
from interp_edu.notebooks import CHECK_CALL

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "interp_edu"
PUBLISHED = [n for n in CHAPTERS if (ROOT / "book" / f"{stem(n)}.md").exists()]

# The ladder, one rung for each chapter, and what stands beside it.
MODULES = {n: [topic] for n, topic in CHAPTERS.items()} | {
    1: ["circuits", "tiny_networks"],
    2: ["superposition", "toy_training"],
    3: ["sparse_autoencoders", "sae_training"],
    4: ["hooks", "transformer", "folding"],
    8: ["patching", "metrics"],
    11: ["features", "harvest"],
}
RUNG = {module: n for n, modules in MODULES.items() for module in modules}
HELPERS = {
    "tinyworld",
    "handmade",
    "pretrained",
    "training",
    "recipes",
    "sae_recipe",
    "measurements",
    "plot",
    "viewers",
    "checks",
    "weights",
    "notebooks",
    "__main__",
    "__init__",
}
MODELS = {"tinyworld", "handmade", "pretrained"}  # what a chapter from 5 on may import of the helpers
KINDS = {"implement", "wire", "debug", "investigate", "judge"}
KIND_LINE = re.compile(r"^\*(\w+) · difficulty ([1-5]) of 5 · (\d+) minutes\*$", re.MULTILINE)


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """The top-level modules of the package that a file imports."""
    return {parts[1] for name in imports(path) if (parts := name.split("."))[0] == "interp_edu" and len(parts) > 1}


def is_check(value: object) -> bool:
    return hasattr(value, "section") and not isinstance(value, type)  # CheckFailed has a section, too


def test_every_module_has_its_place():
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py"))):
            assert path.stem in RUNG or path.stem in HELPERS, f"{path.name} is neither a chapter's module nor a helper"


def test_imports_go_down_the_ladder():
    for module, rung in RUNG.items():
        path = PACKAGE / f"{module}.py"
        if path.exists():
            for other in ours(path) & set(RUNG):
                assert RUNG[other] < rung or other in MODULES[rung], f"{module} imports {other}, which is not below it"
            allowed = MODELS if rung > 4 else set()
            assert ours(path) & HELPERS <= allowed, f"{module} imports a helper"


def test_only_plot_imports_matplotlib():
    users = {path.stem for path in PACKAGE.rglob("*.py") if any(n.split(".")[0] == "matplotlib" for n in imports(path))}
    assert users <= {"plot"}


def test_nobody_edits_the_path():
    tracked = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.ipynb"], cwd=ROOT, capture_output=True, text=True)
    edit = re.compile(r"sys\.path\.(append|insert|extend)|sys\.path\s*(\+=|=[^=])")
    assert [name for name in tracked.stdout.split() if edit.search((ROOT / name).read_text("utf-8"))] == []


def test_importing_the_package_costs_no_more_than_torch():
    code = "import sys, interp_edu; print(sorted({'torch', 'numpy', 'matplotlib', 'jaxtyping'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_modules_can_be_read_in_one_sitting():
    """Checks are lists of independent pieces, most of their lines feedback: they may be longer."""
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path.name: n for path, n in lines.items() if n > (700 if path.parent.name == "checks" else 380)} == {}


@pytest.mark.parametrize("chapter", PUBLISHED)
class TestChapter:
    def test_has_its_parts(self, chapter):
        name, topic = stem(chapter), CHAPTERS[chapter]
        parts = [
            *(f"interp_edu/{module}.py" for module in MODULES[chapter]),
            *(f"tests/test_{module}.py" for module in MODULES[chapter]),
            f"book/notebooks/{name}.ipynb",
            f"solutions/{name}.md",
            f"solutions/{name}.ipynb",
            f"exercises/{name}.ipynb",
            f"interp_edu/checks/{topic}.py",
            f"tests/checks/{topic}.py",
        ]
        assert [part for part in parts if not (ROOT / part).exists()] == []
        for where in ("book/_toc.yml", "book/intro.md", "README.md"):
            assert name in (ROOT / where).read_text("utf-8"), f"{where} does not mention {name}"

    def test_exercises_checks_and_bank_match(self, chapter):
        topic = CHAPTERS[chapter]
        cells = nbformat.read(ROOT / "exercises" / f"{stem(chapter)}.ipynb", as_version=4).cells
        called = [name for cell in cells if cell.cell_type == "code" for name in CHECK_CALL.findall(cell.source)]
        checks = importlib.import_module(f"interp_edu.checks.{topic}")
        defined = [name for name, value in vars(checks).items() if is_check(value)]
        bank = importlib.import_module(f"tests.checks.{topic}").BANK
        assert len(called) == len(set(called)) >= 6
        assert set(called) == set(defined) == set(bank)

    def test_exercises_are_described(self, chapter):
        text = (ROOT / "solutions" / f"{stem(chapter)}.md").read_text("utf-8")
        page = (ROOT / "book" / f"{stem(chapter)}.md").read_text("utf-8")
        parts = re.split(rf"^## (?={chapter}\.)", text, flags=re.MULTILINE)[1:]
        kinds = []
        for number, part in enumerate(parts, start=1):
            title = part.partition("\n")[0].removeprefix(f"{chapter}.{number} ")
            assert part.startswith(f"{chapter}.{number} "), "exercises are numbered in order"
            found = KIND_LINE.findall(part)
            assert len(found) == 1, f"{title}: kind, difficulty and minutes are missing"
            kind, difficulty, minutes = found[0]
            kinds.append(kind)
            assert 1 <= part.count("<details><summary>Hint") <= 2 or kind == "judge", f"{title}: one or two hints"
            assert "**Solution.**" in part, f"{title}: no reasoning"
            row = f"| {chapter}.{number} | {title} | {kind} | {difficulty} of 5 | {minutes} |"
            assert row in page, f"the page's table lacks the row {row}"
            assert re.search(rf"Exercises? [^\n]*\b{chapter}\.{number}\b", page), (
                f"{title}: not mentioned where it helps"
            )
        assert set(kinds) == KINDS

    def test_feedback_points_to_sections_that_exist(self, chapter):
        page = (ROOT / "book" / f"{stem(chapter)}.md").read_text("utf-8")
        headings = set(re.findall(r"^#+ (.+)$", page, re.MULTILINE))
        checks = importlib.import_module(f"interp_edu.checks.{CHAPTERS[chapter]}")
        sections = {value.section for value in vars(checks).values() if is_check(value)}
        assert sections <= headings
