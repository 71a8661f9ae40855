"""Shipped weight files: a damaged, missing or unknown one is refused with the command that remakes it."""

import shutil

import pytest
import torch

from interp_edu import recipes, weights


@pytest.fixture
def folder(tmp_path):
    for path in weights.FOLDER.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "damage", [lambda content: content[:1000], lambda content: content[:-1] + b"x", lambda content: b""]
)
def test_a_damaged_file_is_refused(folder, damage):
    path = folder / "superposition_sweep.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(weights.WeightsError, match="python -m interp_edu train superposition_sweep"):
        weights.load("superposition_sweep", folder)


def test_a_missing_file_and_an_unknown_name(folder):
    (folder / "superposition_sweep.safetensors").unlink()
    with pytest.raises(weights.WeightsError, match="is missing: remake it"):
        weights.load("superposition_sweep", folder)
    with pytest.raises(KeyError, match="there are: features, gpt2_attention, recall, small, superposition_sweep"):
        weights.load("gpt5", folder)
    with pytest.raises(KeyError, match="there are: superposition_sweep"):
        recipes.remake("gpt5", folder)


def test_every_shipped_file_is_in_the_manifest_and_has_a_recipe():
    shipped = {path.stem for path in weights.FOLDER.glob("*.safetensors")}
    assert shipped == set(weights.manifest()) == set(recipes.RECIPES)
    for name in shipped:
        assert all(tensor.isfinite().all() for tensor in weights.load(name).values())


def test_remaking_writes_a_file_that_loads(folder, monkeypatch):
    def tiny(state):
        return {"W": torch.eye(3).half()}

    monkeypatch.setitem(recipes.RECIPES, "tiny", recipes.Recipe("A tiny one.", tiny, lambda tensors: {"trace": 3.0}))
    recipes.remake("tiny", folder)
    assert torch.equal(weights.load("tiny", folder)["W"], torch.eye(3))
    assert weights.manifest(folder)["tiny"]["quality"] == {"trace": 3.0}
    assert weights.load("superposition_sweep", folder)["W"].shape == (3, 20, 30, 400)
