"""What the book states about GPT-2, which it does not ship: `python -m interp_edu measure gpt2_attention MODEL`.

The result is a small file in `weights/`, so that pages show evidence from a real model and still build without it.
"""

import itertools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp_edu.attention_heads import LowRank, composition_scores, full_qk, ov_circuits, qk_circuits
from interp_edu.circuits import Circuit
from interp_edu.folding import center_writing_weights, fold_layer_norm
from interp_edu.ioi import Head, Knockout, PerHead, Prompts, attention_by_role, copy_scores, performance
from interp_edu.pretrained import ModelError, load
from interp_edu.transformer import Config, Transformer


def gpt2_attention(source: str | Path) -> dict[str, Tensor]:
    """Composition of every two heads, [layer, head, layer, head], and two figures for every head, from weights alone.

    `ov_norm`, and `back_one`: the mean attention that a head would give to the position before, over 32 positions, if
    it saw position embeddings alone.

    Args:
        source: what `load` takes, or a .safetensors file with the attention weights alone (`W_Q`, `W_K`, `W_V` and
            `W_O` stacked by layer, with TransformerLens's axes, `b_Q`, `b_K`, `ln1_w`, `ln1_b`, and `W_pos`).

    Raises:
        ModelError: there is no such model, or the file holds something else.
    """
    is_file = Path(source).suffix == ".safetensors"
    model = center_writing_weights(fold_layer_norm(attention_only(Path(source)) if is_file else load(str(source))))
    ov, qk = ov_circuits(model), qk_circuits(model)
    readers: dict[str, LowRank] = {"q": qk, "k": qk.T, "v": ov}
    tables = {f"{side}_composition": composition_scores(ov, reader) for side, reader in readers.items()}
    return {**{name: value.half() for name, value in tables.items()}, "ov_norm": ov.norm(), "back_one": back_one(model)}


def back_one(model: Transformer, positions: int = 32) -> Float[Tensor, "layer head"]:
    """The mean attention to the position before, if a head saw position embeddings alone."""
    W_pos = model.pos_embed.W_pos[:positions]
    future = torch.ones(len(W_pos), len(W_pos)).triu(1).bool()
    heads = itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads))
    patterns = [full_qk(model, *at, W_pos, W_pos).full().masked_fill(future, -torch.inf).softmax(-1) for at in heads]
    means = torch.stack([pattern.diagonal(-1).mean() for pattern in patterns])
    return means.view(model.cfg.n_layers, model.cfg.n_heads)


def attention_only(path: Path) -> Transformer:
    """A model of which only the attention weights and the LayerNorms before them are known: it cannot be run."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise ModelError(f"there is no file {path}")
    try:
        stacked = {name: value.float() for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise ModelError(f"{path} cannot be read, it may be cut off or damaged: {error}") from None
    missing = {"W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "ln1_w", "ln1_b", "W_pos"} - set(stacked)
    if missing or stacked["W_Q"].ndim != 4:
        raise ModelError(
            f"{path} does not hold stacked attention weights; it lacks {', '.join(sorted(missing)) or 'axes'}"
        )
    n_layers, n_heads, d_model, d_head = stacked["W_Q"].shape
    W_pos = stacked["W_pos"]
    cfg = Config(n_layers, d_model, len(W_pos), d_head, n_heads, d_vocab=1, attn_only=True)
    model = Transformer(cfg).requires_grad_(False)
    model.pos_embed.W_pos.copy_(W_pos)
    for layer, (name, value) in itertools.product(range(n_layers), stacked.items()):
        where = f"ln1.{name[-1]}" if name.startswith("ln1_") else f"attn.{name}"
        if f"blocks.{layer}.{where}" in model.state_dict():
            parameter = model.get_parameter(f"blocks.{layer}.{where}")
            if value.shape != (n_layers, *parameter.shape):
                wanted = [n_layers, *parameter.shape]
                raise ModelError(f"{name} in {path} is {list(value.shape)}; with this W_Q it must be {wanted}")
            parameter.copy_(value[layer])
    return model


def read_most(table: Float[Tensor, "layer head layer head"], sender: tuple[int, int]) -> list[tuple[str, float]]:
    """The heads of all layers above a sender by how much they read of it, largest first, as ("L6H9", score)."""
    layer, head = sender
    scores, n_heads = table[layer, head, layer + 1 :].flatten().float(), table.shape[1]
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    return [(f"L{layer + 1 + i // n_heads}H{i % n_heads}", scores[i].item()) for i in order]


def quality(tensors: dict[str, Tensor]) -> dict[str, float]:
    """The figures that the pages of chapters 5 and 6 rest on.

    Raises ModelError for a model that does not have GPT-2 small's 12 layers of 12 heads.
    """
    if tensors["ov_norm"].shape != (12, 12):
        raise ModelError("these figures are those of GPT-2 small's heads: the model must have 12 layers of 12 heads")
    k, q = tensors["k_composition"].float(), tensors["q_composition"].float()
    found = {f"l4h11_into_{name.lower()}_keys": score for name, score in read_most(k, (4, 11))[:6]}
    return {
        **found,
        "l4h11_median_over_later_keys": k[4, 11, 5:].median().item(),
        "l8h10_into_name_movers_queries": q[8, 10, [9, 9, 10], [9, 6, 0]].mean().item(),
        "l4h11_back_one_by_positions": tensors["back_one"][4, 11].item(),
    }


# Indirect objects --------------------------------------------------------------------------------

# Wang et al. (2023), figure 2 and section 3: 26 heads of GPT-2 small, each at the position where it works.
_PUBLISHED_HEADS = {
    "duplicate-token head at S2": "0.1 0.10 3.0",
    "previous-token head at S1+1": "2.2 4.11",
    "induction head at S2": "5.5 5.8 5.9 6.9",
    "S-inhibition head at END": "7.3 7.9 8.6 8.10",
    "name mover head at END": "9.6 9.9 10.0",
    "backup name mover head at END": "9.0 9.7 10.1 10.2 10.6 10.10 11.2 11.9",
    "negative name mover head at END": "10.7 11.10",
}
GPT2_CIRCUIT = Circuit(
    {
        f"L{layer}H{head} at {where.split()[-1]}": where.partition(" at ")[0]
        for (layer, head), where in sorted(
            (tuple(map(int, head.split("."))), where)
            for where, heads in _PUBLISHED_HEADS.items()
            for head in heads.split()
        )
    }
)
GPT2_PUBLISHED = {
    "logit difference": 3.56,
    "IO above S": 0.993,
    "P(IO)": 0.49,
    "name movers' attention to IO": 0.59,
    "S-inhibition heads' attention to S2": 0.51,
    "copy score of the name movers, at least": 0.95,
    "negative copy score of the negative name movers": 0.98,
    "faithfulness of the circuit": 0.87,
    "difference left without the name movers": 0.95,
}


def gpt2_measured(model: Transformer, p: Prompts, circuit: Circuit = GPT2_CIRCUIT) -> dict[str, float]:
    """The quantities of `GPT2_PUBLISHED` for a model and a circuit whose nodes have the paper's roles.

    Raises ValueError for a circuit that lacks one of the roles asked about, or has heads that the model has not.
    """
    wanted = {"name mover head", "S-inhibition head", "negative name mover head"}
    if missing := wanted - set(circuit.nodes.values()):
        raise ValueError(f"the circuit has no {', no '.join(sorted(missing))}")
    there = {f"L{layer}H{head}" for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)}
    if absent := {name.partition(" at ")[0] for name in circuit.nodes} - there:
        raise ValueError(f"this model has no heads {', '.join(sorted(absent))}")

    def heads(role: str) -> list[Head]:
        names = [name.partition(" at ")[0][1:].split("H") for name, its in circuit.nodes.items() if its == role]
        return [(int(layer), int(head)) for layer, head in names]

    def of(table: PerHead, role: str) -> Tensor:
        return torch.stack([table[head] for head in heads(role)])

    basics, knockout = performance(model, p), Knockout(model, p)
    to_io, to_s2 = attention_by_role(model, p, [("END", "IO"), ("END", "S2")])
    whole, movers = knockout(knockout.network), {f"L{i}H{h}" for i, h in heads("name mover head")}
    ours = [
        basics["logit_difference"],
        basics["io_above_s"],
        basics["p_io"],
        of(to_io, "name mover head").mean().item(),
        of(to_s2, "S-inhibition head").mean().item(),
        of(copy_scores(model, p), "name mover head").min().item(),
        of(copy_scores(model, p, sign=-1), "negative name mover head").mean().item(),
        knockout(circuit.nodes) / whole,
        knockout(knockout.network - movers) / whole,
    ]
    return dict(zip(GPT2_PUBLISHED, ours, strict=True))
