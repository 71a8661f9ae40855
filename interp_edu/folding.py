"""The same function with other weights: LayerNorm folded into its readers, and what does not matter centred away.

These are TransformerLens's preparations (Nanda and Bloom 2022), each as a function of its own that returns a new
model and leaves the old one alone. After them a weight matrix says by itself what a component reads or writes.
"""

from dataclasses import replace

import torch
from torch import Tensor

from interp_edu.transformer import Config, Transformer


def fold_layer_norm(model: Transformer) -> Transformer:
    """The same function, with every LayerNorm's w and b moved into the matrices that read from it.

    What is left of LayerNorm ("LNPre") has no weights, so `W_Q` and the others say by themselves what a
    component reads. LayerNorm subtracts the mean, hence what they would read along (1, ..., 1) is removed too.

    Raises:
        ValueError: the model has no LayerNorm weights.
    """
    if model.cfg.normalization_type != "LN":
        raise ValueError(f"there is no LayerNorm to fold: normalization_type is {model.cfg.normalization_type!r}")
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def fold(norm: str, readers: dict[str, str]) -> None:
        w, b = state.pop(f"{norm}.w"), state.pop(f"{norm}.b")
        for matrix, bias in readers.items():  # matrix is [..., d_model, out], bias [..., out]
            state[bias] += b @ state[matrix]
            scaled = w[:, None] * state[matrix]
            state[matrix] = scaled - scaled.mean(dim=-2, keepdim=True)

    for layer in range(model.cfg.n_layers):
        at = f"blocks.{layer}"
        fold(f"{at}.ln1", {f"{at}.attn.W_{side}": f"{at}.attn.b_{side}" for side in "QKV"})
        if not model.cfg.attn_only:
            fold(f"{at}.ln2", {f"{at}.mlp.W_in": f"{at}.mlp.b_in"})
    fold("ln_final", {"unembed.W_U": "unembed.b_U"})
    return _rebuilt(model, state, replace(model.cfg, normalization_type="LNPre"))


def center_writing_weights(model: Transformer) -> Transformer:
    """The same function, where nothing writes along (1, ..., 1): LayerNorm would remove it anyway.

    Raises:
        ValueError: without LayerNorm that direction matters.
    """
    if model.cfg.normalization_type is None:
        raise ValueError("a model without LayerNorm uses the mean of its stream: centring would change it")
    state = model.state_dict()
    writers = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
    centred = {
        name: value - value.mean(dim=-1, keepdim=True) if name.rpartition(".")[2] in writers else value
        for name, value in state.items()
    }
    return _rebuilt(model, centred)


def center_unembed(model: Transformer) -> Transformer:
    """The same probabilities, with each position's logits shifted so that their mean over the vocabulary is zero."""
    state = model.state_dict()
    for name in ("unembed.W_U", "unembed.b_U"):
        state[name] = state[name] - state[name].mean(dim=-1, keepdim=True)
    return _rebuilt(model, state)


def fold_value_biases(model: Transformer) -> Transformer:
    """The same function with b_V = 0: as a pattern's rows sum to one, b_V W_O is a constant and moves to b_O."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in range(model.cfg.n_layers):
        at = f"blocks.{layer}.attn"
        state[f"{at}.b_O"] += torch.einsum("he,hed->d", state[f"{at}.b_V"], state[f"{at}.W_O"])
        state[f"{at}.b_V"].zero_()
    return _rebuilt(model, state)


def _rebuilt(model: Transformer, state: dict[str, Tensor], cfg: Config | None = None) -> Transformer:
    parameter = model.embed.W_E
    new = Transformer(cfg or model.cfg).to(parameter.device, parameter.dtype)
    new.load_state_dict(state)
    new.tokenizer = model.tokenizer
    return new.requires_grad_(parameter.requires_grad).train(model.training)
