"""The machinery of the checks: calling an answer safely, comparing, and failing in a way that teaches.

A check is a function of an answer and a `Judge`. `@exercise` turns it into what a notebook calls: it
prints one line when the answer is right or untouched, and raises `CheckFailed` when it is wrong.
"""

import functools
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp_edu import CHAPTERS

# The outcome of each exercise's last check in this process, for the report: name -> (outcome, text).
results: dict[str, tuple[str, str]] = {}


@dataclass
class CheckFailed(Exception):
    """A wrong answer: what was claimed, seen and expected, what it looks like, and where to read on."""

    exercise: str
    claim: str
    seen: str = ""
    expected: str = ""
    likely: str = ""
    section: str = ""

    def __str__(self) -> str:
        parts = [("seen", self.seen), ("expected", self.expected), ("likely", self.likely), ("read", self.section)]
        lines = [f"    {name + ':':<10}{text}" for name, text in parts if text]
        return "\n".join([f"✗ {self.exercise}: {self.claim}", *lines])

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback: the learner's code is at fault, not the frames in here."""
        return str(self).splitlines()


class NotAttempted(Exception):
    """The stub is untouched: an answer is `...`, or a function raises NotImplementedError."""


def exercise(section: str) -> Callable:
    """Makes a check out of `check(answer, judge)`; `section` is the heading of the page that explains it."""

    def decorate(check: Callable[[Any, "Judge"], None]) -> Callable:
        topic = check.__module__.rpartition(".")[2]
        where = next((f'chapter {n}, "{section}"' for n, name in CHAPTERS.items() if name == topic), section)

        @functools.wraps(check)
        def run(answer: Any, *, seed: int = 0) -> None:
            name = check.__name__
            try:
                with torch.random.fork_rng(devices=[]), torch.no_grad():
                    torch.manual_seed(seed)
                    judge = Judge(name, where, seed)
                    _still_open(answer, judge)
                    check(answer, judge)
            except NotAttempted:
                results[name] = ("not attempted", "")
                text = f"· {name}: not attempted yet (if it is, delete the line `raise NotImplementedError()`)"
                if not callable(answer):
                    text = f"· {name}: not attempted yet"
                if "NBGRADER_EXECUTION" in os.environ:  # there a cell that raises nothing earns full marks
                    raise CheckFailed(name, "not attempted") from None
                print(text)
            except CheckFailed as failure:
                results[name] = ("failed", str(failure))
                raise failure from None
            except Exception as error:  # an answer of a kind that the check did not foresee
                what, why = _describe(answer), f"it led to {type(error).__name__}: {_short(str(error))}"
                odd = CheckFailed(name, "the check cannot make sense of this answer", what, likely=why, section=where)
                results[name] = ("failed", str(odd))
                raise odd from None
            else:
                text = f"✓ {name}: {judge.checks} checks"
                results[name] = ("passed", text)
                print(text)

        run.section = section  # type: ignore[attr-defined]
        return run

    return decorate


class Judge:
    """What a check works with: a seeded generator, safe calls, and comparisons that explain themselves."""

    def __init__(self, exercise: str, section: str, seed: int):
        self.exercise, self.section = exercise, section
        self.generator = torch.Generator().manual_seed(seed)
        self.checks = 0

    # Random inputs

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def rand(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    # Running the learner's code

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """fn's value. It gets copies, so it may change its arguments; whatever it raises fails the check."""
        if not callable(fn):
            self.fail(
                f"expected a function, got {_describe(fn)}", likely="pass the function itself, without calling it"
            )
        args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
        try:
            with torch.enable_grad():
                return fn(*args, **kwargs)
        except (Exception, SystemExit) as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
            if isinstance(error, NotImplementedError) and frames and "NotImplementedError" in (frames[-1].line or ""):
                raise NotAttempted from None  # the stub's own; torch raises the same for what it cannot do
            line = f" in the line `{frames[0].line}`" if frames and frames[0].line else ""
            self.fail(f"your code raised {type(error).__name__}{line}", seen=_short(str(error)))

    def tensor(self, value: Any, shape: tuple[int, ...], what: str = "the result") -> Tensor:
        """The value as a float64 tensor, if it is array-like, of that shape and finite; else the check fails."""
        if value is None:
            self.fail(f"{what} is None", likely="the function has no return statement on this path")
        if value is ...:
            raise NotAttempted
        try:
            value = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
            value = value.to("cpu", torch.float64)
        except (TypeError, ValueError, RuntimeError):
            self.fail(f"{what} should be a tensor", seen=_describe(value))
        if tuple(value.shape) != tuple(shape):
            self.fail(f"{what} has the wrong shape", seen=str(tuple(value.shape)), expected=str(tuple(shape)))
        if value.isnan().any():
            self.fail(f"{what} holds NaN", likely="0 divided by 0: which input leads to it, and what should come out?")
        if value.isinf().any():
            self.fail(f"{what} holds infinities", likely="a number divided by zero, or the logarithm of zero")
        self.checks += 1
        return value

    # Verdicts

    def fail(self, claim: str, *, seen: Any = "", expected: Any = "", likely: str = "") -> Any:
        raise CheckFailed(self.exercise, claim, _format(seen), _format(expected), likely, self.section)

    def that(self, ok: Any, claim: str, *, seen: Any = "", expected: Any = "", likely: str = "") -> None:
        """One check: passes if ok, else fails with what is given."""
        if not bool(ok):
            self.fail(claim, seen=seen, expected=expected, likely=likely)
        self.checks += 1

    def close(
        self,
        got: Any,
        want: Tensor,
        claim: str,
        *,
        mistakes: Mapping[str, Tensor] | None = None,
        tol: float = 1e-4,
        likely: str = "",
        what: str = "the result",
    ) -> Tensor:
        """One check: got has want's shape and values, within tol of the largest value.

        `mistakes` maps what a mistake is called to the value it leads to; a wrong answer equal to one of them
        is told so. The tolerance admits float32 and any order of summation, not another formula.
        """
        got, want = self.tensor(got, tuple(want.shape), what), want.to(torch.float64)
        if _same(got, want, tol):
            self.checks += 1
            return got
        for name, value in (mistakes or {}).items():
            if value.shape == want.shape and _same(got, value.to(torch.float64), tol):
                likely = name
                break
        worst = int((got - want).abs().argmax())
        index = tuple(int(i) for i in np.unravel_index(worst, want.shape)) if want.ndim else ()
        where = f" at {list(index)}" if index else ""
        wrong = int(((got - want).abs() > tol * (1 + want.abs())).sum())
        share = f"; {wrong} of {want.numel()} entries differ" if want.numel() > 1 else ""
        return self.fail(claim, seen=f"{got[index]:.4g}{where}{share}", expected=f"{want[index]:.4g}", likely=likely)

    def choice(self, answer: Any, options: Mapping[str, str], right: str, claim: str) -> None:
        """One check of a judgement: `options` maps every possible answer to what is wrong with it."""
        answer = answer.strip().lower() if isinstance(answer, str) else repr(answer)
        if answer not in options:
            self.fail(f"{claim}: no such answer", seen=answer, expected=" or ".join(map(repr, options)))
        self.that(answer == right, claim, seen=answer, likely=options[answer])

    def judgements(self, answer: Any, statements: Mapping[str, tuple[bool, str]]) -> None:
        """Checks of true or false: `statements` maps a name to whether it is true, and why."""
        self.that(isinstance(answer, dict), "a dictionary of judgements is expected", seen=answer)
        self.that(set(answer) == set(statements), "one judgement for each statement", seen=sorted(map(str, answer)))
        for name, (truth, why) in statements.items():
            given = answer[name].item() if isinstance(answer[name], Tensor | np.generic) else answer[name]
            given = {1: "true", 0: "false"}.get(given, given) if isinstance(given, int) else given
            self.choice(str(given).lower(), {"true": why, "false": why}, str(truth).lower(), f"statement {name}")


def _still_open(answer: Any, judge: "Judge") -> None:
    entries = list(answer.values()) if isinstance(answer, dict) else [answer]
    missing = [value is ... for value in entries]
    if missing and all(missing):
        raise NotAttempted
    if any(missing):
        judge.fail("some entries are still `...`", seen=[key for key, value in answer.items() if value is ...])


def _same(got: Tensor, want: Tensor, tol: float) -> bool:
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    return bool(((got - want).abs() <= tol * scale).all())


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Tensor):
        return f"{value.item():.4g}" if value.numel() == 1 else _short(str(value.tolist()))
    return value if isinstance(value, str) else _short(repr(value))


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {_short(repr(value), 60)}"


def _short(text: str, most: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
