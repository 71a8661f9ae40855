"""One call for every model: `load("tinyworld")`, `load("gpt2")`, `load("path/to/a/folder")`.

A folder holds `config.json`, the weights and, for GPT-2, its tokenizer; the weights are Hugging Face's GPT-2 files or a
state dict with TransformerLens's names. Nothing is ever downloaded: if a model is not on this machine, the error
says what to put where.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp_edu import tinyworld, weights
from interp_edu.sparse_autoencoders import SAE
from interp_edu.transformer import Config, Transformer

HUB = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt", "model.pth", "model_final.pth")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
COURSE_SEEDS = (0, 1, 2)
SMALL = ("phrases-2l", "phrases-1l", "distances-2l")
RECALL = ("recall", "recall-plain")


class ModelError(ValueError):
    """A model is not here, or its files are not what they should be: the message says what to do."""


def load(name: str | Path, *, seed: int = 0, step: int | None = None) -> Transformer:
    """A model with its tokenizer in `model.tokenizer`, in float32, on the CPU.

    Its parameters need no gradients, so that nothing is kept for backward unless you ask for it
    (`model.requires_grad_()`, or a hook that returns `x.requires_grad_()`).

    Args:
        name: "tinyworld", one of chapter 6's small models ("phrases-2l", "phrases-1l", "distances-2l") or of chapter
            10's ("recall", and "recall-plain", which never read the register), a GPT-2 ("gpt2", "gpt2-medium", ...;
            from the Hugging Face cache), or a folder.
        seed: which of the shipped models, 0, 1 or 2; they differ in nothing but chance.
        step: a small model on the way, if it was kept; without it, at the end of its training.

    Raises:
        ModelError: no such model on this machine, or files that do not fit together.
        WeightsError: the course model's file is missing or damaged.
    """
    if step is not None and name not in SMALL:
        raise ModelError(f"no steps of training were kept of {str(name)!r}, only of {SMALL[0]!r}")
    if name in ("tinyworld", *SMALL, *RECALL):
        if seed not in COURSE_SEEDS:
            raise ModelError(f"the shipped models come with seeds {', '.join(map(str, COURSE_SEEDS))}, not {seed}")
        if name in SMALL:
            return _small_model(str(name), seed, step)
        return _course_model(seed) if name == "tinyworld" else _recall_model(str(name), seed)
    folder = Path(name)
    if not folder.is_dir():
        if str(name) not in HUB:
            names = ", ".join(map(repr, ["tinyworld", *SMALL, *RECALL, *HUB]))
            raise ModelError(f"there is no model and no folder called {str(name)!r}; known by name are {names}")
        folder = _in_hub_cache(str(name))
    return _from_folder(folder)


SAES = {
    "resid": "blocks.2.hook_resid_post",
    "resid-192": "blocks.2.hook_resid_post",
    "resid-3072": "blocks.2.hook_resid_post",
    "resid-again": "blocks.2.hook_resid_post",
    "resid-relu": "blocks.2.hook_resid_post",
    "untrained": "blocks.2.hook_resid_post",
    "mlp": "blocks.0.hook_mlp_out",
    "mlp2": "blocks.2.hook_mlp_out",
}
"""Chapter 11's sparse autoencoders of the course models, and the hooks that they were trained at."""


def load_sae(name: str, *, seed: int = 0) -> SAE:
    """One of chapter 11's sparse autoencoders: of the course model's stream before its last block, or of an MLP.

    "resid", "mlp" (MLP 0) and "mlp2" (MLP 2) are TopK of 768 latents, with seeds 0, 1 and 2 as the course models have
    them; "untrained" is made like "resid", of models that never learned anything (`untrained`). Of seed 0 alone:
    "resid-192" and "resid-3072", with another number of latents, "resid-again", from another start, and "resid-relu",
    with the L1 penalty of chapter 3.
    `SAES[name]` is the hook.

    Raises ModelError for a name or a seed that is not shipped.
    """
    tensors, prefix = weights.load("features"), f"{name}.{seed}."
    state = {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
    if not state:
        there = sorted({".".join(key.split(".")[:2]) for key in tensors})
        raise ModelError(f"no SAE {name!r} of seed {seed} is shipped: there are (name.seed) {', '.join(there)}")
    return SAE.from_state(state)


def untrained(seed: int) -> Transformer:
    """A model of the course model's shape with random weights: the control of chapter 11."""
    model = Transformer(tinyworld.CONFIG, torch.Generator().manual_seed(1000 + seed))
    model.tokenizer = tinyworld.TOKENIZER
    return model.requires_grad_(False).eval()


def save(model: Transformer, folder: Path) -> None:
    """Writes a model so that `load(folder)` reads it: its configuration, and its state dict with these names.

    Raises FileExistsError rather than overwrite a model that is there.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "model.safetensors").exists():
        raise FileExistsError(f"{folder} holds a model already: choose another folder")
    (folder / "config.json").write_text(json.dumps(asdict(model.cfg), indent=2), encoding="utf-8")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")


def _course_model(seed: int) -> Transformer:
    tensors = weights.load("tinyworld" if seed == 0 else f"tinyworld_{seed}")
    model = Transformer(tinyworld.CONFIG)
    model.load_state_dict(tensors)
    model.tokenizer = tinyworld.TOKENIZER
    return model.requires_grad_(False).eval()


def small_config(name: str) -> Config:
    """The shape of a small model: attention alone, one or two layers of four heads, 48 names for words."""
    n_layers = int(name[-2])
    d_vocab = 1 + len(tinyworld.NAMES)
    return Config(n_layers=n_layers, d_model=64, n_ctx=48, d_head=16, n_heads=4, d_vocab=d_vocab, attn_only=True)


def _small_model(name: str, seed: int, step: int | None) -> Transformer:
    prefix = f"{name}.{seed}." if step is None else f"{name}.{seed}@{step}."
    tensors = weights.load("small")
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not state:
        kept = sorted({int(key.split("@")[1].split(".")[0]) for key in tensors if "@" in key})
        raise ModelError(
            f"step {step} of {name}, seed {seed}, was not kept; of {SMALL[0]}, seed 0, these were: {kept}, "
            "and of all the end (give no step)"
        )
    model = Transformer(small_config(name))
    model.load_state_dict(state)
    model.tokenizer = tinyworld.Tokenizer([tinyworld.BOS, *tinyworld.NAMES])
    return model.requires_grad_(False).eval()


def _recall_model(name: str, seed: int) -> Transformer:
    prefix = f"{name}.{seed}."
    tensors = weights.load("recall")
    model = Transformer(tinyworld.CONFIG)
    model.load_state_dict({key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)})
    model.tokenizer = tinyworld.TOKENIZER
    return model.requires_grad_(False).eval()


def _in_hub_cache(name: str) -> Path:
    files = "config.json, model.safetensors, tokenizer.json"
    advice = (
        f"put its files ({files}) into a folder and call load(that folder), "
        f"or fetch them once, online: hf download {HUB[name]} {files.replace(',', '')}"
    )
    try:
        with warnings.catch_warnings():  # in a notebook its progress bars want ipywidgets, which nothing here needs
            warnings.simplefilter("ignore")
            from huggingface_hub import try_to_load_from_cache
    except ImportError:
        raise ModelError(f"{name} is not here (and pip install 'interp_edu[gpt2]' is missing): {advice}") from None
    for repository in (HUB[name], name):
        for file in WEIGHT_FILES:
            found = try_to_load_from_cache(repository, file)
            if isinstance(found, str):
                return Path(found).parent
    raise ModelError(f"{name} is not in the Hugging Face cache of this machine: {advice}")


def _from_folder(folder: Path) -> Transformer:
    settings, tensors = _read_config(folder), _read_weights(folder)
    if "n_embd" in settings:
        cfg, state = _gpt2_config(settings), _gpt2_state(tensors, settings)
    else:
        cfg, state = _lens_config(settings), _lens_state(tensors)
    model = Transformer(cfg)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"the weights in {folder} do not fit its config.json in {len(wrong)} places, the first {name}: "
            f"{given.get(name, 'missing')} instead of {wanted.get(name, 'nothing')}"
        )
    model.load_state_dict(state)
    model.tokenizer = _tokenizer(folder)
    return model.requires_grad_(False).eval()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder} holds no config.json, which says the shape of the model")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is not JSON: {error}") from None


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / file for file in WEIGHT_FILES if (folder / file).exists()), None)
    if path is None:
        raise ModelError(f"{folder} holds no weights: one of {', '.join(WEIGHT_FILES)} should be there")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own for a file that was cut off
        raise ModelError(f"{path} cannot be read, it may be cut off or damaged: {error}") from None
    return {name: tensor.float() for name, tensor in tensors.items()}


# Hugging Face's GPT-2 ----------------------------------------------------------------------------


def _gpt2_config(settings: dict[str, Any]) -> Config:
    expected = {"model_type": "gpt2", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    for key, value in expected.items():
        if settings.get(key, value) != value:
            raise ModelError(f"only GPT-2's architecture can be loaded: config.json has {key} = {settings[key]!r}")
    activation = settings.get("activation_function", "gelu_new")
    if activation not in ("gelu_new", "gelu", "relu"):
        raise ModelError(f"config.json has activation_function = {activation!r}, which this model does not have")
    d_model, n_heads = settings["n_embd"], settings["n_head"]
    return Config(
        n_layers=settings["n_layer"],
        d_model=d_model,
        n_ctx=settings["n_positions"],
        d_head=d_model // n_heads,
        n_heads=n_heads,
        d_vocab=settings["vocab_size"],
        d_mlp=settings.get("n_inner") or 4 * d_model,
        act_fn=activation,
        eps=settings.get("layer_norm_epsilon", 1e-5),
    )


def _gpt2_state(tensors: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
    """GPT-2's tensors under our names: queries, keys and values apart, and every head with matrices of its own."""
    t = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    d, h = settings["n_embd"], settings["n_head"]
    try:
        state = {"embed.W_E": t["wte.weight"], "pos_embed.W_pos": t["wpe.weight"]}
        for layer in range(settings["n_layer"]):
            old, new = f"h.{layer}", f"blocks.{layer}"
            for side, W, b in zip(
                "QKV", t[f"{old}.attn.c_attn.weight"].split(d, 1), t[f"{old}.attn.c_attn.bias"].split(d), strict=True
            ):
                state[f"{new}.attn.W_{side}"] = W.view(d, h, d // h).transpose(0, 1)
                state[f"{new}.attn.b_{side}"] = b.view(h, d // h)
            state[f"{new}.attn.W_O"] = t[f"{old}.attn.c_proj.weight"].view(h, d // h, d)
            state[f"{new}.attn.b_O"] = t[f"{old}.attn.c_proj.bias"]
            for ours, theirs in (("in", "c_fc"), ("out", "c_proj")):
                state[f"{new}.mlp.W_{ours}"] = t[f"{old}.mlp.{theirs}.weight"]
                state[f"{new}.mlp.b_{ours}"] = t[f"{old}.mlp.{theirs}.bias"]
            for norm in (1, 2):
                state[f"{new}.ln{norm}.w"] = t[f"{old}.ln_{norm}.weight"]
                state[f"{new}.ln{norm}.b"] = t[f"{old}.ln_{norm}.bias"]
        state |= {"ln_final.w": t["ln_f.weight"], "ln_final.b": t["ln_f.bias"]}
    except KeyError as error:
        raise ModelError(f"these are not GPT-2's weights: the tensor {error} is missing") from None
    W_U = t.get("lm_head.weight", t["wte.weight"]).T  # GPT-2 unembeds with its embedding
    return {**state, "unembed.W_U": W_U, "unembed.b_U": torch.zeros(W_U.shape[1])}


# TransformerLens's state dict --------------------------------------------------------------------


def _lens_config(settings: dict[str, Any]) -> Config:
    plain = {
        "positional_embedding_type": "standard",
        "parallel_attn_mlp": False,
        "gated_mlp": False,
        "use_local_attn": False,
        "attention_dir": "causal",
        "n_key_value_heads": None,
        "scale_attn_by_inverse_layer_idx": False,
    }
    for key, value in plain.items():
        if settings.get(key, value) != value:
            raise ModelError(f"only GPT-2's architecture can be loaded: config.json has {key} = {settings[key]!r}")
    fields = {name: settings[name] for name in Config.__dataclass_fields__ if name in settings}
    fields["d_mlp"] = 0 if settings.get("attn_only") else settings.get("d_mlp") or 4 * settings.get("d_model", 0)
    fields.setdefault("act_fn", "gelu_new")
    if settings.get("act_fn", 0) is None:  # attention-only models name none
        fields["act_fn"] = "gelu_new"
    try:
        return Config(**fields)
    except (TypeError, ValueError) as error:
        raise ModelError(f"config.json does not describe a model of this kind: {error}") from None


def _lens_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the masks that older files carry."""
    return {name: value for name, value in tensors.items() if not name.endswith((".mask", ".IGNORE"))}


# GPT-2's tokenizer -------------------------------------------------------------------------------


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding (by Hugging Face's tokenizers library), with the calls of tinyworld's tokenizer."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.bos = tokenizer, tokenizer.token_to_id(tinyworld.BOS)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def id(self, word: str) -> int:
        """The token of a string that is a single one, such as " Mary". Raises ValueError if it is not."""
        ids = self.tokenizer.encode(word).ids
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens, {self.str_tokens(ids)}, not one")
        return ids[0]

    def encode(self, text: str | Sequence[str], *, bos: bool = True) -> Int[Tensor, "batch pos"]:
        """The tokens of a text, or of several of equal length, after the token that begins a text."""
        rows = [[self.bos] * bos + self.tokenizer.encode(t).ids for t in ([text] if isinstance(text, str) else text)]
        if len({len(row) for row in rows}) > 1:
            lengths = sorted({len(row) for row in rows})
            raise ValueError(f"texts of {lengths} tokens do not make a batch: encode them singly")
        return torch.tensor(rows, dtype=torch.int64)

    def decode(self, tokens: Int[Tensor, "pos"] | Sequence[int]) -> str:
        return self.tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)

    def str_tokens(self, tokens: Int[Tensor, "pos"] | Sequence[int] | str) -> list[str]:
        row = self.encode(tokens)[0] if isinstance(tokens, str) else tokens
        return [self.decode([int(token)]) for token in row]


def _tokenizer(folder: Path) -> GPT2Tokenizer | None:
    """The tokenizer of a folder, or None if it has none: then the model speaks in token ids only."""
    whole, vocab, merges = (folder / file for file in TOKENIZER_FILES)
    if not whole.exists() and not (vocab.exists() and merges.exists()):
        return None
    try:
        from tokenizers import ByteLevelBPETokenizer, Tokenizer
    except ImportError:
        raise ModelError(f"to read the tokenizer in {folder}: pip install 'interp_edu[gpt2]'") from None
    if whole.exists():
        return GPT2Tokenizer(Tokenizer.from_file(str(whole)))
    tokenizer = ByteLevelBPETokenizer(str(vocab), str(merges))
    tokenizer.add_special_tokens([tinyworld.BOS])
    return GPT2Tokenizer(tokenizer)
