"""Every check rejects every wrong answer of its bank, with the words that help, and accepts every right one."""

import importlib

import pytest

from interp_edu import CHAPTERS
from interp_edu.checks.core import CheckFailed
from tests.checks.bank import Answers

SEEDS = range(20)


def _banks() -> list[tuple[str, str, Answers]]:
    found = []
    for topic in CHAPTERS.values():
        try:
            module = importlib.import_module(f"tests.checks.{topic}")
        except ModuleNotFoundError:
            continue  # test_architecture.py insists on a bank for every chapter that has a page
        found += [(topic, name, answers) for name, answers in module.BANK.items()]
    return found


@pytest.mark.parametrize(
    ("topic", "name", "answers"), _banks(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_bank(topic, name, answers, record_property, capsys):
    check = getattr(importlib.import_module(f"interp_edu.checks.{topic}"), name)
    assert len(answers.wrong) >= 4, "an exercise needs at least four wrong answers"
    assert len(answers.right) >= 2, "an exercise needs at least two right answers"
    missed, refused = [], []
    for seed in SEEDS:
        for number, (answer, words) in enumerate(answers.wrong):
            try:
                check(answer, seed=seed)
                missed.append(f"wrong answer {number} passes with seed {seed}")
            except CheckFailed as failure:
                if words not in str(failure):
                    missed.append(f"wrong answer {number}, seed {seed}: no {words!r} in\n{failure}")
        for number, answer in enumerate(answers.right):
            try:
                check(answer, seed=seed)
            except CheckFailed as failure:
                refused.append(f"right answer {number}, seed {seed}: {failure}")
    lines = capsys.readouterr().out.splitlines()
    passes = sum(line.startswith("✓") for line in lines)
    tried = (len(SEEDS) * len(answers.wrong), len(SEEDS) * len(answers.right))
    record_property("bank", [topic, name, tried[0] - len(missed), tried[0], tried[1] - len(refused), tried[1]])
    assert not missed, f"{len(missed)} of {tried[0]}; the first: {missed[0]}"
    assert not refused, f"{len(refused)} of {tried[1]}; the first: {refused[0]}"
    assert passes == tried[1], "an answer was taken as not attempted"
