"""The weight files that the book ships, and MANIFEST.toml: how each was made, its sha256, its measured quality."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from torch import Tensor

FOLDER = Path(__file__).parent


class WeightsError(RuntimeError):
    """A shipped file is missing, damaged or not the one in the manifest: the message says how to remake it."""


def manifest(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Every shipped file by name: recipe, seeds, sha256 and measured quality."""
    return tomllib.loads((folder / "MANIFEST.toml").read_text(encoding="utf-8"))


def load(name: str, folder: Path = FOLDER) -> dict[str, Tensor]:
    """The tensors of a shipped file, in float32, after checking its sha256.

    Raises:
        KeyError: the manifest has no such name.
        WeightsError: the file is missing or is not the file that the manifest describes.
    """
    from safetensors.torch import load as from_bytes

    entries = manifest(folder)
    if name not in entries:
        raise KeyError(f"no weights are called {name!r}; there are: {', '.join(entries)}")
    path, remake = folder / f"{name}.safetensors", f"remake it with `{entries[name]['recipe']}`"
    if not path.exists():
        raise WeightsError(f"{path.name} is missing: {remake}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entries[name]["sha256"]:
        raise WeightsError(f"{path.name} is damaged or not the file in the manifest (its sha256 differs): {remake}")
    return {key: tensor.float() for key, tensor in from_bytes(content).items()}
