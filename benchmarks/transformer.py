"""Speed of the forward pass: ours against minimal hand-written ones and, where it is installed, TransformerLens.

    python benchmarks/transformer.py [--threads 1] [--rounds 15]

Two comparisons, over shapes and batch sizes:

- with a full cache, against a forward that does nothing but compute and store the same activations (the floor);
- without hooks, against a forward that uses torch's fused attention and stores nothing.

All take turns within a round, so that a busy machine slows them alike. A row shows the median over rounds of each
round's ratio, with the quartiles. The floors hold their weights ready in the layout that suits them best.
"""

import argparse
import importlib.util
import math
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F

from interp_edu.hooks import run_with_cache
from interp_edu.transformer import Config, Transformer

SHAPES = {
    "4 x 128": Config(n_layers=4, d_model=128, n_ctx=64, d_head=32, n_heads=4, d_vocab=512, d_mlp=512),
    "GPT-2": Config(n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_vocab=50257, d_mlp=3072),
}
POSITIONS = 32


class Floor:
    """The same computation with nothing around it: flat weights, queries, keys and values from one product."""

    def __init__(self, model: Transformer):
        self.heads, self.W_E, self.W_pos = model.cfg.n_heads, model.embed.W_E, model.pos_embed.W_pos
        self.final = (model.ln_final.w, model.ln_final.b)
        self.W_U, self.b_U = model.unembed.W_U.T, model.unembed.b_U
        self.layers = []
        for block in model.blocks:
            a, m = block.attn, block.mlp
            W_QKV = torch.cat([W.transpose(1, 2).flatten(0, 1) for W in (a.W_Q, a.W_K, a.W_V)]).contiguous()
            b_QKV = torch.cat([b.flatten() for b in (a.b_Q, a.b_K, a.b_V)])
            self.layers.append(
                (
                    (block.ln1.w, block.ln1.b, W_QKV, b_QKV, a.W_O.flatten(0, 1).T, a.b_O),
                    (block.ln2.w, block.ln2.b, m.W_in.T, m.b_in, m.W_out.T, m.b_out),
                )
            )

    def fused(self, tokens: torch.Tensor) -> torch.Tensor:
        x = F.embedding(tokens, self.W_E) + self.W_pos[: tokens.shape[1]]
        size = x.shape[-1:]
        for (w1, b1, W_QKV, b_QKV, W_O, b_O), (w2, b2, W_in, b_in, W_out, b_out) in self.layers:
            qkv = F.linear(F.layer_norm(x, size, w1, b1), W_QKV, b_QKV).unflatten(-1, (3, self.heads, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(z.transpose(1, 2).flatten(2), W_O, b_O)
            post = F.gelu(F.linear(F.layer_norm(x, size, w2, b2), W_in, b_in), approximate="tanh")
            x = x + F.linear(post, W_out, b_out)
        return F.linear(F.layer_norm(x, size, *self.final), self.W_U, self.b_U)

    def storing(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        n, stored = tokens.shape[1], []

        def norm(x, w, b):
            x = x - x.mean(-1, keepdim=True)
            scale = (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            normalized = x / scale
            stored.extend((scale, normalized))
            return torch.addcmul(b, normalized, w)

        embed, pos = F.embedding(tokens, self.W_E), self.W_pos[:n]
        x = embed + pos
        mask = torch.full((n, n), -math.inf).triu_(1)
        stored += [embed, pos]
        for (w1, b1, W_QKV, b_QKV, W_O, b_O), (w2, b2, W_in, b_in, W_out, b_out) in self.layers:
            stored.append(x)
            qkv = F.linear(norm(x, w1, b1), W_QKV, b_QKV).unflatten(-1, (3, self.heads, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            scores = q @ k.mT / math.sqrt(q.shape[-1]) + mask
            pattern = scores.softmax(-1)
            z = (pattern @ v).transpose(1, 2)
            attn_out = F.linear(z.flatten(2), W_O, b_O)
            mid = x + attn_out
            pre = F.linear(norm(mid, w2, b2), W_in, b_in)
            post = F.gelu(pre, approximate="tanh")
            mlp_out = F.linear(post, W_out, b_out)
            x = mid + mlp_out
            stored += [q, k, v, scores, pattern, z, attn_out, mid, pre, post, mlp_out, x]
        return F.linear(norm(x, *self.final), self.W_U, self.b_U), stored


def transformer_lens(model: Transformer):
    """TransformerLens's model with the same weights, or None where it is not installed."""
    if importlib.util.find_spec("transformer_lens") is None:
        return None
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = model.cfg
    names = ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_vocab", "d_mlp", "act_fn", "normalization_type")
    lens = HookedTransformer(HookedTransformerConfig(**{name: getattr(cfg, name) for name in names}, device="cpu"))
    lens.load_state_dict(model.state_dict(), strict=False)
    return lens


def interleaved(loops: dict, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per call, by loop and round; each loop runs for about `seconds` in a round."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    calls = {}
    for name, loop in loops.items():
        loop()
        start = time.perf_counter()
        loop()
        calls[name] = max(1, round(seconds / (time.perf_counter() - start)))
    for _ in range(rounds):
        for name, loop in loops.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                loop()
            times[name].append((time.perf_counter() - start) / calls[name])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each loop in a round")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.rounds} rounds, {POSITIONS} positions")
    print(f"{'shape':<9}{'batch':>6}  {'forward':<26}{'ms':>8}   ratio to its floor (quartiles)")
    for shape, cfg in SHAPES.items():
        model = Transformer(cfg).requires_grad_(False)
        floor, lens = Floor(model), transformer_lens(model)
        for batch in (1, 16):
            tokens = torch.randint(cfg.d_vocab, (batch, POSITIONS))
            assert torch.allclose(model(tokens), floor.fused(tokens), atol=1e-4)
            assert len(floor.storing(tokens)[1]) == len(run_with_cache(model, tokens)[1])
            loops = {
                "floor, storing": partial(floor.storing, tokens),
                "ours, full cache": partial(run_with_cache, model, tokens),
                "floor, fused": partial(floor.fused, tokens),
                "ours, no hooks": partial(model, tokens),
            }
            if lens is not None:
                loops["TransformerLens, full cache"] = partial(lens.run_with_cache, tokens)
                loops["TransformerLens, no hooks"] = partial(lens, tokens)
            with torch.no_grad():
                times = interleaved(loops, options.rounds, options.seconds)
            for name, ours in times.items():
                base = times["floor, storing" if "cache" in name or "storing" in name else "floor, fused"]
                low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, base, strict=True)], n=4)
                print(
                    f"{shape:<9}{batch:>6}  {name:<26}{statistics.median(ours) * 1e3:>8.2f}   "
                    f"{middle:.2f} ({low:.2f} to {high:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
