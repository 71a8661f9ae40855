"""The pipeline: one source, generated notebooks that nobody edits, and nothing a learner wrote is lost."""

import json
import re
from pathlib import Path

import pytest

from interp_edu import notebooks as nb

ROOT = Path(__file__).parents[1]
SOURCE = """---
jupytext:
  text_representation:
    format_name: myst
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---

# Toy: solutions

Half of it is {glue:text}`half:.2f`.

```{code-cell} ipython3
from interp_edu.notebooks import glue
glue("half", 1 / 2)
```

## 9.1 Twice

```{code-cell} ipython3
def twice(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION
```

```{code-cell} ipython3
:tags: [nbval-check-output]
check = type("", (), {"twice": staticmethod(lambda f: print(f(4)))})
check.twice(twice)
```

+++ {"tags": ["solution"]}

Because.
"""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository of one chapter's solutions, generated."""
    monkeypatch.setattr(nb, "REPO", tmp_path)
    (tmp_path / "solutions").mkdir()
    source = tmp_path / "solutions" / "ch09_toy.md"
    source.write_text(SOURCE)
    return tmp_path


@pytest.fixture
def generated(repo, monkeypatch):
    """The same with its notebooks made, without starting a kernel."""

    def execute(notebook, source):
        for number, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
            cell["execution_count"] = number + 1
        scrap = {"name": "half", "mime_prefix": "application/papermill.record/"}
        data = {"application/papermill.record/text/plain": "0.5"}
        first = next(c for c in notebook["cells"] if c["cell_type"] == "code")
        first["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {"scrapbook": scrap}}]
        return notebook

    monkeypatch.setattr(nb, "execute", execute)
    nb.generate()
    return repo


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_committed_notebooks_are_what_their_sources_give():
    assert nb.problems() == []


def test_every_printed_number_is_compared_when_the_notebooks_are_run():
    """A cell with text output has the tag that makes nbval compare it."""
    for folder in ("book/notebooks", "solutions"):
        for path in (ROOT / folder).glob("*.ipynb"):
            for cell in json.loads(path.read_text("utf-8"))["cells"]:
                for output in cell.get("outputs", []):
                    text = output["output_type"] == "stream" or set(output.get("data", {})) == {"text/plain"}
                    tagged = "nbval-check-output" in cell["metadata"].get("tags", [])
                    solution = nb.BEGIN in "".join(cell["source"])
                    assert not text or tagged or solution, f"{path.name}, {cell['id']}: prints without being checked"
                    assert output["output_type"] != "error", f"{path.name}, {cell['id']}"


def test_figures_have_captions_and_alt_text():
    for path in (ROOT / "book/notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
                mystnb = cell["metadata"].get("mystnb", {})
                assert mystnb.get("figure", {}).get("caption"), f"{path.name}, {cell['id']}: no caption"
                assert mystnb.get("image", {}).get("alt"), f"{path.name}, {cell['id']}: no alt text"


def test_execution_is_repeatable_to_the_byte(repo):
    texts = []
    for _ in range(2):
        source = nb.sources()[0]
        texts.append(nb.dumps(nb.seal(nb.expand(nb.execute(nb.parse(source), source), source))))
    assert texts[0] == texts[1]
    assert "Half of it is 0.50." in texts[0]
    assert '"8\\n"' in texts[0]


def test_printing_in_pieces_gives_one_output(repo):
    edit(
        repo / "solutions/ch09_toy.md",
        'glue("half", 1 / 2)',
        'glue("half", 1 / 2)\nimport time\nfor k in range(4):\n    print(k, flush=True); time.sleep(0.1)',
    )
    source = nb.sources()[0]
    outputs = nb.execute(nb.parse(source), source)["cells"][1]["outputs"]
    assert [o["text"] for o in outputs if o["output_type"] == "stream"] == ["0\n1\n2\n3\n"]


def test_a_chapter_over_its_time_budget_is_not_made(repo, monkeypatch):
    monkeypatch.setattr(nb, "SECONDS_PER_CHAPTER", 0.01)
    source = nb.sources()[0]
    with pytest.raises(nb.SourceError, match="ship weights instead"):
        nb.execute(nb.parse(source), source)


def test_stubs(generated):
    exercises = (generated / "exercises/ch09_toy.ipynb").read_text()
    for gone in ("return 2 * x", "SOLUTION", "Because.", "solutions"):
        assert gone not in exercises
    for there in ("# YOUR CODE HERE", "raise NotImplementedError()", "# Toy: exercises", "Half of it is 0.50."):
        assert there in exercises
    assert nb.problems() == []


def test_figures_may_be_told_in_glued_numbers(generated):
    source, path = generated / "solutions/ch09_toy.md", generated / "solutions/ch09_toy.ipynb"
    told = "mystnb:\n  figure:\n    caption: Half is {glue:text}`half:.1f`.\n  image:\n    alt: A bar of {glue:text}`half`."
    edit(source, "ipython3\nfrom interp_edu", f"ipython3\n---\n{told}\n---\nfrom interp_edu")
    assert "is stale, its source has changed" in nb.problems()[0]
    nb.generate()
    first = next(c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
    assert first["metadata"]["mystnb"] == {"figure": {"caption": "Half is 0.5."}, "image": {"alt": "A bar of 0.5."}}
    assert nb.problems() == []
    edit(path, "A bar of 0.5.", "A bar of 0.7.")
    assert "ch09_toy.ipynb is stale" in nb.problems()[0]
    edit(source, "`half:.1f`", "`third:.1f`")
    assert "no cell glues 'third'" in nb.problems()[0]
    edit(source, "`third:.1f`.", "`half:.1f.")
    assert "in the caption is not written as it should be" in nb.problems()[0]


def test_a_stub_outside_a_function_raises_nothing():
    source = f"answer = ...\n{nb.BEGIN}\nanswer = 42\n{nb.END}\nprint(answer)"
    assert nb.stub(source) == "answer = ...\n# YOUR CODE HERE\nprint(answer)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    ### END SOLUTION\n", "", "without '### END SOLUTION'"),
        ("    ### BEGIN SOLUTION\n", "", "without its counterpart"),
        ("    ### END SOLUTION\n", "    ### BEGIN SOLUTION\n", "without its counterpart"),
        ("### BEGIN SOLUTION", "## BEGIN SOLUTION", "looks like a marker"),
        ("`half:.2f`", "`third:.2f`", "no cell glues 'third'"),
        ("`half:.2f`", "`half:.2f} and `", "not written as it should be"),
    ],
)
def test_a_bad_source_stops_the_making(repo, monkeypatch, old, new, message):
    edit(repo / "solutions/ch09_toy.md", old, new)
    with pytest.raises(nb.SourceError, match=message):
        nb.generate()


@pytest.mark.parametrize("code", ["1 / 0", "import sys; print('oh', file=sys.stderr)"])
def test_errors_and_warnings_stop_the_making(repo, code):
    edit(repo / "solutions/ch09_toy.md", 'glue("half", 1 / 2)', code)
    with pytest.raises(nb.SourceError, match=r"does not run|writes to stderr"):
        nb.generate()


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("solutions/ch09_toy.md", "Half of it", "A half of it", "is stale.*make notebooks"),
        (
            "solutions/ch09_toy.ipynb",
            "Half of it",
            "A half of it",
            "edited by hand.*solutions/ch09_toy.md.*make notebooks",
        ),
        ("solutions/ch09_toy.ipynb", '"0.5"', '"0.7"', "edited by hand"),
        ("exercises/ch09_toy.ipynb", "raise NotImplementedError()", "return x + x", "somebody's answers.*kept.*rename"),
        ("exercises/ch09_toy.ipynb", '"display_name"', '"display-name"', "is stale"),
    ],
)
def test_what_is_wrong_is_found_with_the_command_that_mends_it(generated, path, old, new, message):
    edit(generated / path, old, new)
    found = "\n".join(nb.problems())
    assert re.search(message, found), found


def test_missing_notebooks_are_found(generated):
    (generated / "exercises/ch09_toy.ipynb").unlink()
    (generated / "solutions/ch09_toy.ipynb").rename(generated / "gone")
    assert "is missing: run `make notebooks" in nb.problems()[0]


def test_a_learners_answers_are_never_overwritten(generated, capsys):
    path = generated / "exercises/ch09_toy.ipynb"
    edit(path, "raise NotImplementedError()", "return x + x")
    mine = path.read_text()
    nb.generate()
    assert path.read_text() == mine
    assert "KEPT" in capsys.readouterr().out
    path.write_text(mine[:100])  # half-written by a crash: not readable, so not ours to replace
    with pytest.raises(nb.SourceError, match="restore or delete"):
        nb.generate()
    assert path.read_text() == mine[:100]


def test_a_notebook_without_our_hash_counts_as_a_learners(generated):
    path = generated / "exercises/ch09_toy.ipynb"
    notebook = json.loads(path.read_text())
    del notebook["metadata"]["interp_edu"]
    path.write_text(json.dumps(notebook))
    nb.generate()
    assert "interp_edu" not in json.loads(path.read_text())["metadata"]


def test_running_a_notebook_is_no_edit_worth_keeping(generated):
    path = generated / "exercises/ch09_toy.ipynb"
    fresh = path.read_text()
    notebook = json.loads(fresh)
    next(c for c in notebook["cells"] if c["cell_type"] == "code")["execution_count"] = 7
    path.write_text(json.dumps(notebook))
    nb.generate()
    assert path.read_text() == fresh


def test_edits_of_other_generated_notebooks_are_saved_beside(generated, capsys):
    path = generated / "solutions/ch09_toy.ipynb"
    edit(path, "return 2 * x", "return 3 * x")
    mine = path.read_text()
    nb.generate()
    assert (generated / "solutions/ch09_toy.edited.ipynb").read_text() == mine
    assert "had been edited by hand" in capsys.readouterr().out
    edit(path, "return 2 * x", "return 4 * x")
    nb.generate()
    assert len(list((generated / "solutions").glob("*.edited*.ipynb"))) == 2, "an earlier copy is not overwritten"


def test_nbgrader_accepts_the_solutions(tmp_path):
    """What nbgrader makes of our solutions is what we hand out, but for its own metadata."""
    pytest.importorskip("nbgrader", reason="nbgrader is not installed: an optional extra")
    import nbformat
    from nbgrader.preprocessors import ClearSolutions

    for path in (ROOT / "solutions").glob("*.ipynb"):
        made, _ = ClearSolutions().preprocess(nbformat.read(path, as_version=4), {})
        for cell in made.cells:
            assert nb.BEGIN not in cell.source
            if cell.metadata.get("nbgrader", {}).get("solution"):
                assert "YOUR CODE HERE" in cell.source
