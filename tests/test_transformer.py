"""The transformer, against hand-worked cases, a head-by-head loop written anew, and TransformerLens where it is installed."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from interp_edu.hooks import hooked, run_with_cache
from interp_edu.transformer import Config, Transformer, attention, layer_norm, to_heads

SHAPE = Config(n_layers=2, d_model=24, n_ctx=16, d_head=5, n_heads=3, d_vocab=50, d_mlp=28)


def random_model(cfg=SHAPE, seed=0):
    """All parameters random, those that start as zeros and ones too."""
    model = Transformer(cfg, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def tokens(batch=3, length=9, seed=0):
    return torch.randint(SHAPE.d_vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def slow_logits(model, token_ids):
    """The same function one position and one head at a time, in float64."""
    p = {name: value.double() for name, value in model.state_dict().items()}
    act = {"gelu_new": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu, "relu": F.relu}[model.cfg.act_fn]

    def norm(x, name):
        if model.cfg.normalization_type is None:
            return x
        x = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + model.cfg.eps)
        return x * p[f"{name}.w"] + p[f"{name}.b"] if f"{name}.w" in p else x

    x = [p["embed.W_E"][t] + p["pos_embed.W_pos"][i] for i, t in enumerate(token_ids)]
    for layer in range(model.cfg.n_layers):
        at, new = f"blocks.{layer}", []
        for i in range(len(x)):
            out = p[f"{at}.attn.b_O"].clone()
            for h in range(model.cfg.n_heads):
                q, *_ = (norm(x[i], f"{at}.ln1") @ p[f"{at}.attn.W_Q"][h] + p[f"{at}.attn.b_Q"][h],)
                keys = [norm(y, f"{at}.ln1") @ p[f"{at}.attn.W_K"][h] + p[f"{at}.attn.b_K"][h] for y in x[: i + 1]]
                values = [norm(y, f"{at}.ln1") @ p[f"{at}.attn.W_V"][h] + p[f"{at}.attn.b_V"][h] for y in x[: i + 1]]
                weights = torch.stack([q @ k for k in keys]).div(math.sqrt(model.cfg.d_head)).softmax(0)
                out += sum(w * v for w, v in zip(weights, values, strict=True)) @ p[f"{at}.attn.W_O"][h]
            new.append(x[i] + out)
        x = new
        if not model.cfg.attn_only:
            x = [
                y
                + act(norm(y, f"{at}.ln2") @ p[f"{at}.mlp.W_in"] + p[f"{at}.mlp.b_in"]) @ p[f"{at}.mlp.W_out"]
                + p[f"{at}.mlp.b_out"]
                for y in x
            ]
    return torch.stack([norm(y, "ln_final") @ p["unembed.W_U"] + p["unembed.b_U"] for y in x])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"attn_only": True, "d_mlp": 0},
        {"normalization_type": None},
        {"normalization_type": "LNPre", "act_fn": "relu"},
        {"act_fn": "gelu", "eps": 0.1},
    ],
    ids=str,
)
def test_logits_of_every_kind_of_model(change):
    model = random_model(Config(**{**vars(SHAPE), **change}))
    t = tokens()
    expected = torch.stack([slow_logits(model, row.tolist()) for row in t])
    assert torch.allclose(model(t).double(), expected, atol=2e-4, rtol=1e-4)
    recorded, _ = run_with_cache(model, t)  # the explicit path
    assert torch.allclose(recorded.double(), expected, atol=2e-4, rtol=1e-4)
    with torch.enable_grad():  # the path that keeps gradients apart
        assert torch.allclose(model.requires_grad_()(t).double(), expected, atol=2e-4, rtol=1e-4)


def test_attention_on_three_tokens():
    """Worked by hand: one head of one dimension; scores q k, values 1, 10, 100."""
    q, k, v = (
        torch.tensor(x)[None, :, None, None] for x in ([0.0, 1.0, 1.0], [0.0, 0.0, math.log(2.0)], [1.0, 10.0, 100.0])
    )
    assert torch.allclose(attention(q, k, v).flatten(), torch.tensor([1.0, 5.5, 0.25 * 1 + 0.25 * 10 + 0.5 * 100]))


def test_layer_norm_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, variance 3.5
    assert torch.allclose(layer_norm(x, eps=0.5), torch.tensor([-1.0, -0.5, 0.0, 1.5]))
    assert torch.allclose(
        layer_norm(x, torch.tensor([2.0, 2, 2, 2]), torch.tensor([0.0, 1, 0, 0]), 0.5), torch.tensor([-2.0, 0, 0, 3])
    )
    assert layer_norm(torch.zeros(4)).abs().max() == 0


def test_explicit_attention_after_inference_mode():
    """The mask is kept from call to call: one made without autograd must serve one with it."""
    model, t = random_model(seed=7), tokens(length=13)
    with torch.inference_mode():
        run_with_cache(model, t)
    logits, _ = run_with_cache(model.requires_grad_(), t)
    logits.sum().backward()
    assert model.blocks[0].attn.W_Q.grad.abs().sum() > 0


def test_nobody_looks_ahead():
    model, t = random_model(), tokens()
    changed = t.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % SHAPE.d_vocab
    assert torch.allclose(model(t)[:, :5], model(changed)[:, :5], atol=1e-5)
    assert not torch.allclose(model(t)[:, 5], model(changed)[:, 5], atol=1e-2)


def test_start_late_and_stop_early():
    model, t = random_model(), tokens()
    logits, cache = run_with_cache(model, t)
    for layer in range(3):
        stream = model(t, stop_at_layer=layer)
        assert torch.allclose(model(stream, start_at_layer=layer), logits, atol=1e-5)
        if layer < 2:
            assert torch.allclose(stream, cache["resid_pre", layer], atol=1e-5)
    assert torch.allclose(model(t, stop_at_layer=2), run_with_cache(model, t, stop_at_layer=2)[0], atol=1e-5)
    between = model(model(t, stop_at_layer=1), start_at_layer=1, stop_at_layer=2)
    assert torch.allclose(between, cache["resid_post", 1], atol=1e-5)
    assert model(t[0]).shape == (1, 9, 50)


@pytest.mark.parametrize(
    ("inputs", "kwargs", "error", "words"),
    [
        (torch.tensor([[0, 50]]), {}, ValueError, "token id 50 is out of range: ids go from 0 to 49"),
        (torch.tensor([[-1, 4]]), {}, ValueError, "token id -1 is out of range"),
        (torch.zeros(1, 17, dtype=torch.int64), {}, ValueError, "reads 1 to 16 tokens at once, not 17"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, ValueError, "not 0"),
        (torch.zeros(1, 4), {}, TypeError, "tokens must be int64 or int32"),
        (torch.zeros(1, 4, 2, 2, dtype=torch.int64), {}, TypeError, "tokens must be int64 or int32"),
        (
            torch.zeros(1, 4, 24, dtype=torch.float64),
            {"start_at_layer": 1},
            TypeError,
            "stream of torch.float32 is needed",
        ),
        (
            torch.zeros(1, 4, 23),
            {"start_at_layer": 1},
            ValueError,
            r"has shape \[batch, pos <= 16, 24\], not \[1, 4, 23\]",
        ),
        (torch.zeros(1, 4, dtype=torch.int64), {"start_at_layer": 1}, TypeError, "stream of torch.float32"),
        (torch.zeros(1, 4, dtype=torch.int64), {"stop_at_layer": 3}, ValueError, "layers go from 0 to 2"),
        (
            torch.zeros(1, 4, 24),
            {"start_at_layer": 2, "stop_at_layer": 1},
            ValueError,
            "cannot start at 2 and stop at 1",
        ),
        (torch.zeros(1, 4, dtype=torch.int64, device="meta"), {}, ValueError, "the input is on meta, the model on cpu"),
    ],
)
def test_wrong_input_is_explained(inputs, kwargs, error, words):
    with pytest.raises(error, match=words):
        random_model()(inputs, **kwargs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_heads": 0}, "n_heads must be at least 1"),
        ({"act_fn": "swish"}, "gelu_new, gelu, relu"),
        ({"normalization_type": "RMS"}, "normalization_type"),
        ({"attn_only": True}, "d_mlp"),
        ({"d_mlp": 0}, "d_mlp"),
    ],
)
def test_wrong_shapes_are_explained(change, words):
    with pytest.raises(ValueError, match=words):
        Config(**{**vars(SHAPE), **change})


def test_editing_a_weight_in_place_counts_however_it_is_done():
    """Queries, keys and values share memory and one product: an edit of any of them must show."""
    t = tokens()
    for edit in (
        lambda attn: attn.W_V.data[1].zero_(),
        lambda attn: setattr(attn, "W_K", torch.nn.Parameter(torch.zeros_like(attn.W_K), requires_grad=False)),
        lambda attn: setattr(attn.W_Q, "data", attn.W_Q.data * 2),
        lambda attn: attn.b_V.data.add_(1),
        lambda attn: attn.load_state_dict({k: v * 0.5 for k, v in attn.state_dict().items()}),
    ):
        model = random_model()
        edit(model.blocks[0].attn)
        expected = torch.stack([slow_logits(model, row.tolist()) for row in t])
        for same in (model, copy.deepcopy(model)):
            assert torch.allclose(same(t).double(), expected, atol=2e-4, rtol=1e-4)
    double = copy.deepcopy(random_model()).double()
    assert torch.allclose(double(t), torch.stack([slow_logits(random_model(), r.tolist()) for r in t]), atol=1e-8)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_works_in_torch_func():
    """Per-sample gradients: parameters are then wrapped tensors without an address."""
    model, t = random_model(), tokens()
    parameters = dict(model.named_parameters())

    def total(parameters, row):
        return torch.func.functional_call(model, parameters, (row[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(total), in_dims=(None, 0))(parameters, t)
    model.requires_grad_()
    model(t[1:2]).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(per_sample[name][1], parameter.grad, atol=1e-2, rtol=1e-3), name


def test_to_heads_with_an_input_for_each_head():
    model = random_model()
    attn, x = model.blocks[0].attn, torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(0))
    same = to_heads(x[:, :, None].expand(-1, -1, 3, -1), attn.W_Q, attn.b_Q)
    assert torch.allclose(same, to_heads(x, attn.W_Q, attn.b_Q), atol=1e-5)


def test_costly_points():
    model, t = random_model(), tokens()
    logits, cache = run_with_cache(model, t, lambda name: True)
    assert torch.allclose(logits, model(t), atol=1e-5)
    assert torch.allclose(cache["result", 1].sum(dim=2) + model.blocks[1].attn.b_O, cache["attn_out", 1], atol=1e-5)

    def no_bos(x, hook):
        x[:, 0, 1] = 0

    names = [f"blocks.1.hook_{side}_input" for side in "qkv"]
    for side, name in zip("qkv", names, strict=True):
        with hooked(model, [(name, no_bos)]):
            _, changed = run_with_cache(model, t)
        for other in "qkv":
            same = torch.isclose(changed[other, 1], cache[other, 1], atol=1e-5).all(dim=-1)
            assert same.all() != (other == side)
            assert same[:, 1:].all()
            assert same[:, :, [0, 2]].all()
    with hooked(model, [("blocks.1.hook_mlp_in", lambda x, hook: torch.zeros_like(x))]):
        _, changed = run_with_cache(model, t)
    assert torch.allclose(changed["resid_mid", 1], cache["resid_mid", 1], atol=1e-5)
    assert not torch.allclose(changed["mlp_out", 1], cache["mlp_out", 1], atol=1e-3)


def test_stacked():
    model = random_model()
    assert torch.equal(model.stacked("attn.W_Q")[1], model.blocks[1].attn.W_Q)
    assert model.stacked("mlp.b_in").shape == (2, 28)


@pytest.mark.parametrize("change", [{}, {"attn_only": True, "d_mlp": 0}, {"normalization_type": "LNPre"}], ids=str)
def test_peer_transformer_lens(change):
    """Every activation that both record is the same; state dicts load in both directions."""
    lens = pytest.importorskip("transformer_lens", reason="TransformerLens is not installed")
    cfg = Config(**{**vars(SHAPE), **change})
    model = random_model(cfg)
    settings = {name: value for name, value in vars(cfg).items() if not (cfg.attn_only and name in ("d_mlp", "act_fn"))}
    theirs = lens.HookedTransformer(lens.HookedTransformerConfig(**settings, device="cpu"))
    theirs.load_state_dict(model.state_dict(), strict=False)
    theirs.set_use_attn_result(True)
    for batch, length in [(1, 1), (4, 9), (2, 16)]:
        t = tokens(batch, length)
        with torch.no_grad():
            expected, their_cache = theirs.run_with_cache(t)
            logits, cache = run_with_cache(model, t, lambda name: not name.endswith("_input") and "mlp_in" not in name)
        assert torch.allclose(logits, expected, atol=1e-4)
        assert set(cache) == set(their_cache) - {"unembed.hook_in", "unembed.hook_out"}  # copies of two others
        for name, value in cache.items():
            assert torch.allclose(value, their_cache[name].expand_as(value), atol=1e-4), name
    back = Transformer(cfg)
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith((".mask", ".IGNORE"))}
    back.load_state_dict(state)
    assert torch.allclose(back(t), expected, atol=1e-4)
