"""The machinery of the checks: what it prints, raises and forgives."""

import pytest
import torch

from interp_edu.checks import core
from interp_edu.checks.core import CheckFailed, Judge, exercise


@exercise("A section")
def doubled(fn, judge: Judge):
    x = judge.randn(4)
    judge.close(judge.call(fn, x), 2 * x, "twice x", mistakes={"that is x itself": x, "that is x squared": x**2})


@exercise("A section")
def colour(answer, judge: Judge):
    judge.choice(answer["sky"], {"blue": "", "green": "that is the grass"}, "blue", "the sky")


def failure(check, answer):
    with pytest.raises(CheckFailed) as caught:
        check(answer)
    return str(caught.value)


def test_right_answers_print_one_line(capsys):
    doubled(lambda x: x + x)
    assert capsys.readouterr().out == "✓ doubled: 2 checks\n"
    assert core.results["doubled"][0] == "passed"


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x.mul_(2),
        lambda x: 2 * x.double(),
        lambda x: (2 * x).numpy(),
        lambda x: (2 * x).tolist(),
        lambda x: (2 * x).requires_grad_(),
        lambda x: (2 * x).expand(2, 4)[0],
        lambda x: torch.stack([sum(v for _ in range(2)) for v in x]),
    ],
    ids=["in place", "float64", "numpy", "list", "with gradient", "view", "loop"],
)
def test_right_answers_of_any_make_pass(answer):
    doubled(answer)


def test_an_untouched_stub_is_not_attempted(capsys):
    def stub(x):
        raise NotImplementedError()

    doubled(stub)
    doubled(...)
    colour({"sky": ...})
    shown = capsys.readouterr().out
    assert shown.count("not attempted yet") == 3
    assert "delete the line `raise NotImplementedError()`" in shown
    assert core.results["colour"][0] == "not attempted"


def test_an_untouched_stub_earns_no_marks_in_nbgrader(monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert "not attempted" in failure(doubled, ...)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x, "that is x itself"),
        (lambda x: x**2, "that is x squared"),
        (lambda x: 3 * x, "4 of 4 entries differ"),
        (lambda x: None, "no return statement"),
        (lambda x: 2 * x[:3], "wrong shape"),
        (lambda x: "twice", "should be a tensor"),
        (lambda x: 2 * x / 0 * 0, "NaN"),
        (lambda x: x / 0, "infinities"),
        (lambda x: x.no_such_method(), "AttributeError in the line `(lambda x: x.no_such_method()"),
        (lambda x: exit(3), "SystemExit"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (torch.ones(4), "expected a function"),
    ],
)
def test_wrong_answers_are_told_what_is_wrong(answer, words):
    text = failure(doubled, answer)
    assert words in text
    assert text.startswith("✗ doubled: ")
    assert "A section" in text


def test_choices():
    colour({"sky": " Blue"})
    assert "cannot make sense of this answer" in failure(colour, [3])
    assert "that is the grass" in failure(colour, {"sky": "green"})
    assert "'blue' or 'green'" in failure(colour, {"sky": "grey"})


def test_a_partly_filled_answer_says_what_is_open():
    assert "['b']" in failure(colour, {"sky": "blue", "b": ...})


def test_checks_leave_the_learners_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    doubled(lambda x: 2 * x + 0 * torch.rand(4))
    assert torch.equal(torch.rand(3), expected)


def test_a_failure_shows_no_traceback_in_a_notebook():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell()
    with capture_output() as shown:
        shell.run_cell("from tests.test_checks import doubled\ndoubled(lambda x: x)")
    text = shown.stdout + shown.stderr
    assert "that is x itself" in text
    assert "Traceback" not in text
    assert "core.py" not in text
