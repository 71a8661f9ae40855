"""What a wrong-answer bank is made of."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Answers:
    """Answers to one exercise: right ones, written differently, and wrong ones with words their feedback contains."""

    right: list[Any]
    wrong: list[tuple[Any, str]]
