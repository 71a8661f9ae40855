"""`python -m interp_edu check`: whatever a learner's code does, the report comes, one line for each exercise."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from interp_edu.__main__ import main
from interp_edu.checks.report import check_notebook, table
from interp_edu.recipes import RECIPES

ROOT = Path(__file__).parents[1]
SETUP = "import torch\nfrom interp_edu.checks import superposition as check"
RIGHT = "def reconstruct(W, b, x):\n    return torch.relu(torch.einsum('ihf,ihg,big->bif', W, W, x) + b)"
HEAD = "def interference(W):\n    "


def notebook(tmp_path, *solutions):
    """A notebook in which each (name, code) is an exercise with its check."""
    cells = [nbformat.v4.new_code_cell(SETUP)]
    for number, (name, code) in enumerate(solutions, start=1):
        cells.append(nbformat.v4.new_markdown_cell(f"## 9.{number} {name}"))
        cells.append(nbformat.v4.new_code_cell(code))
        cells.append(nbformat.v4.new_code_cell(f"check.{name}({name})"))
    path = tmp_path / "answers.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (HEAD + "raise KeyError('oops')", "KeyError"),
        (HEAD + "return torch.zeros(", "SyntaxError"),
        (HEAD + "while True: pass", "loop for ever"),
        (
            HEAD + "\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
            "loop",
        ),
        (HEAD + "while True: print('x' * 10_000)", "printed more than"),
        (HEAD + "raise SystemExit", "SystemExit"),
        (HEAD + "import os; os._exit(3)", "exit code 3"),
        (HEAD + "return interference(W)", "RecursionError"),
        (HEAD + "return W * float(input())", "EOFError"),
        ("import sys\nsys.exit(1)", "SystemExit"),
        ("while True: pass", "loop for ever"),
        ("", "NameError"),
    ],
    ids=[
        "raises",
        "syntax",
        "loops",
        "catches all",
        "floods",
        "exits",
        "dies",
        "recurses",
        "asks",
        "exits early",
        "loops early",
        "deleted",
    ],
)
def test_bad_code_costs_only_its_own_exercise(tmp_path, code, words):
    path = notebook(tmp_path, ("interference", code), ("reconstruct", RIGHT), ("evidence", "evidence = ..."))
    first, second, third, *_ = check_notebook(path, seconds=4.0)
    assert (first.title, first.outcome) == ("9.1 interference", "failed")
    assert words in first.text
    assert second.outcome == "passed"
    assert third.outcome == "not attempted"


def test_two_fatal_cells_in_one_notebook(tmp_path):
    die = "def {}(*_):\n    import os; os._exit(3)"
    path = notebook(
        tmp_path,
        ("interference", die.format("interference")),
        ("reconstruct", RIGHT),
        ("dimensions_per_feature", die.format("dimensions_per_feature")),
    )
    assert [line.outcome for line in check_notebook(path)][:3] == ["failed", "passed", "failed"]


def test_threads_that_never_end_are_not_waited_for(tmp_path):
    thread = "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\n"
    path = notebook(tmp_path, ("reconstruct", thread + RIGHT), ("evidence", "evidence = ..."))
    assert [line.outcome for line in check_notebook(path, seconds=20.0)][:2] == ["passed", "not attempted"]


def test_a_missing_check_is_seen_and_a_merged_one_run_again(tmp_path):
    path = notebook(
        tmp_path,
        ("reconstruct", RIGHT + "\ncheck.reconstruct(reconstruct)"),
        ("interference", HEAD + "import os; os._exit(3)"),
    )
    book = nbformat.read(path, as_version=4)
    book.cells = [cell for cell in book.cells if cell.source != "check.reconstruct(reconstruct)"]
    book.cells += [nbformat.v4.new_code_cell("assert reconstruct"), nbformat.v4.new_code_cell("  # check.evidence(0)")]
    nbformat.write(book, path)
    found = {line.name: line for line in check_notebook(path)}
    assert (found["reconstruct"].outcome, found["interference"].outcome) == ("passed", "failed")
    assert found["evidence"].outcome == "not attempted"
    assert "is missing" in found["evidence"].title
    assert len(found) == 11


def test_a_cell_needs_time(tmp_path):
    with pytest.raises(ValueError, match="must be positive"):
        check_notebook(notebook(tmp_path, ("reconstruct", RIGHT)), seconds=0.0)


def test_scratch_cells_do_not_matter(tmp_path):
    path = notebook(tmp_path, ("reconstruct", RIGHT))
    book = nbformat.read(path, as_version=4)
    book.cells.insert(1, nbformat.v4.new_code_cell("1 / 0"))
    book.cells.append(nbformat.v4.new_code_cell("%time _ = reconstruct"))
    nbformat.write(book, path)
    assert [line.outcome for line in check_notebook(path)][:1] == ["passed"]


@pytest.mark.parametrize("stem", sorted(path.stem for path in (ROOT / "solutions").glob("*.ipynb")))
def test_stubs_are_not_attempted_and_solutions_pass(stem):
    """The mirror: what is handed out fails nothing, and what is given as a solution passes."""
    untouched = check_notebook(ROOT / "exercises" / f"{stem}.ipynb")
    assert {line.outcome for line in untouched} == {"not attempted"}, table(untouched)
    solved = check_notebook(ROOT / "solutions" / f"{stem}.ipynb")
    assert {line.outcome for line in solved} == {"passed"}, table(solved)
    assert len(solved) == len(untouched) >= 6


def test_the_command_line(tmp_path, monkeypatch, capsys):
    path = notebook(tmp_path, ("reconstruct", RIGHT.replace("+ b", "- b")))
    assert main(["check", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "✗ 9.1 reconstruct  " in shown
    assert "0 passed, 1 failed, 10 not attempted" in shown
    assert "its sign is +" in shown
    assert main(["check", "99"]) == 2
    assert "chapters go from 1 to 12" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none.ipynb")]) == 2
    assert "is not a file" in capsys.readouterr().err
    (tmp_path / "broken.ipynb").write_text("{")
    assert main(["check", str(tmp_path / "broken.ipynb")]) == 2
    assert "not a notebook any more" in capsys.readouterr().err
    assert main(["check", __file__]) == 2
    assert "ends in .ipynb" in capsys.readouterr().err
    assert main(["check", "12"]) == 2
    assert "in preparation" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["check", "2"]) == 2
    assert "run this from the book's folder" in capsys.readouterr().err
    assert main(["train", "nothing"]) == 2
    assert "there are: superposition_sweep" in capsys.readouterr().err


def test_what_is_trained_and_what_is_measured(capsys):
    """Each of the two commands lists and takes its own names only; nothing is made here."""
    assert main(["train", "list"]) == 0
    trained = capsys.readouterr().out.split()
    assert main(["measure", "list", "x"]) == 0
    measured = capsys.readouterr().out.split()
    assert measured == ["gpt2_attention"]
    assert "small" in trained
    assert "tinyworld" in trained
    assert set(trained) | set(measured) == set(RECIPES)
    assert not set(trained) & set(measured)
    assert main(["train", "gpt2_attention"]) == 2
    assert "train knows no 'gpt2_attention'; there are: superposition_sweep" in capsys.readouterr().err
    for name in ("small", "nothing"):
        assert main(["measure", name, "x"]) == 2
        assert f"measure knows no '{name}'; there are: gpt2_attention\n" in capsys.readouterr().err
    assert main(["measure", "gpt2_attention", "no/such/folder"]) == 2
    assert "there is no model and no folder called 'no/such/folder'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:  # the model is missing
        main(["measure", "gpt2_attention"])
    assert stopped.value.code == 2


def test_progress_shows_every_chapter():
    done = subprocess.run([sys.executable, "-m", "interp_edu", "progress"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = dict(enumerate(done.stdout.splitlines(), start=1))
    assert len(lines) == 12
    assert "in preparation" in lines.pop(12)
    stems = sorted(path.stem for path in (ROOT / "exercises").glob("ch*.ipynb"))
    assert [int(stem[2:4]) for stem in stems] == list(lines)
    for line, stem in zip(lines.values(), stems, strict=True):
        attempts = (ROOT / "solutions" / f"{stem}.md").read_text(encoding="utf-8").count("\ncheck.")
        assert f"{stem[5:].replace('_', ' ')} " in line
        assert line.endswith(f" 0 failed, {attempts} not attempted")
