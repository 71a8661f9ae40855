"""interp_edu: the open textbook of mechanistic interpretability that runs.

Each chapter of the book has one module of the same name here. The chapters, in reading order, are
the ladder: a chapter's module imports only modules above it, which `tests/test_architecture.py`
proves. Importing the package imports nothing else, so it costs next to nothing.
"""

__version__ = "0.1.0"

CHAPTERS = {
    1: "circuits",
    2: "superposition",
    3: "sparse_autoencoders",
    4: "transformer",
    5: "attention_heads",
    6: "induction_heads",
    7: "logit_lens",
    8: "activation_patching",
    9: "ioi",
    10: "factual_recall",
    11: "features",
    12: "circuit_discovery",
}
"""Chapter number to topic. `stem(2)` names the five parts of a chapter."""


def stem(chapter: int) -> str:
    """The name that a chapter's page, exercises and solutions share: `stem(2) == "ch02_superposition"`."""
    return f"ch{chapter:02d}_{CHAPTERS[chapter]}"
