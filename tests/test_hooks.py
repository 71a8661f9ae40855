"""Hooks read, replace and record; they go away however the block ends; unknown names are answered with the nearest."""

import pytest
import torch

from interp_edu.hooks import Cache, HookPoint, hook_name, hooked, run_with_cache, select
from tests.test_transformer import random_model, tokens


def test_a_hook_reads_and_replaces():
    model, t, seen = random_model(), tokens(), []
    _, cache = run_with_cache(model, t)
    with hooked(model, [("blocks.0.attn.hook_pattern", lambda x, hook: seen.append((x, hook)))]):
        logits = model(t)
    assert torch.allclose(seen[0][0], cache["pattern", 0])
    assert (seen[0][1].name, seen[0][1].layer()) == ("blocks.0.attn.hook_pattern", 0)
    assert torch.allclose(logits, model(t), atol=1e-5)
    with hooked(model, [(lambda name: name.endswith("hook_z"), lambda z, hook: torch.zeros_like(z))]):
        _, ablated = run_with_cache(model, t)
    for layer in range(2):
        assert torch.allclose(ablated["attn_out", layer], model.blocks[layer].attn.b_O.expand(3, 9, -1))


def test_writing_in_place_is_the_same_as_returning_and_spoils_nothing():
    model, t = random_model(), tokens()
    _, clean = run_with_cache(model, t)

    def in_place(x, hook):
        x[:, 2] = 0

    def returned(x, hook):
        return torch.cat([x[:, :2], torch.zeros_like(x[:, 2:3]), x[:, 3:]], dim=1)

    caches = []
    for hook in (in_place, returned):
        with hooked(model, [("blocks.1.hook_resid_pre", hook)]):
            caches.append(run_with_cache(model, t)[1])
    for name in clean:
        assert torch.equal(caches[0][name], caches[1][name]), name
    assert torch.equal(caches[0]["resid_post", 0], clean["resid_post", 0])  # the same tensor until the hook wrote
    assert caches[0]["resid_pre", 1][:, 2].abs().max() == 0


def test_hooks_are_called_in_order_and_nest():
    model, t, calls = random_model(), tokens(), []
    with (
        hooked(model, [("hook_embed", lambda x, hook: calls.append("first")), ("hook_embed", lambda x, hook: x * 2)]),
        hooked(model, [("hook_embed", lambda x, hook: calls.append(x.norm().item()))]),
    ):
        model(t)
    assert calls[0] == "first"
    assert calls[1] == pytest.approx(2 * run_with_cache(model, t)[1]["hook_embed"].norm().item())


def test_hooks_always_go_away():
    model, t = random_model(), tokens()
    before = model(t)

    def breaks(x, hook):
        raise RuntimeError("on purpose")

    for names in ("blocks.0.hook_resid_mid", ["hook_embed", "blocks.1.mlp.hook_post"]):
        with pytest.raises(RuntimeError, match="on purpose"), hooked(model, [(names, breaks)]):
            model(t)
        assert not model.attached
    with (
        pytest.raises(ValueError, match="no hook point"),
        hooked(model, [("hook_embed", breaks), ("nonsense", breaks)]),
    ):
        pass
    assert not model.attached
    outer = hooked(model, [("hook_embed", lambda x, hook: x * 2)])
    with outer:
        with pytest.raises(RuntimeError, match="on purpose"), hooked(model, [("hook_embed", breaks)]):
            model(t)
        assert len(model.attached["hook_embed"]) == 1
    assert torch.equal(model(t), before)


def test_what_a_hook_may_return():
    model, t = random_model(), tokens()
    for value, error, words in [
        (0, TypeError, "the hook at hook_embed returned int: return a tensor, or nothing"),
        (torch.zeros(3, 9), ValueError, r"returned shape \[3, 9\], but it must be \[3, 9, 24\]"),
    ]:
        with pytest.raises(error, match=words), hooked(model, [("hook_embed", lambda x, hook, value=value: value)]):
            model(t)


def test_names():
    model = random_model()
    assert hook_name("resid_pre", 3) == "blocks.3.hook_resid_pre"
    assert hook_name("post", 0) == "blocks.0.mlp.hook_post"
    assert hook_name("ln1.scale", 2) == "blocks.2.ln1.hook_scale"
    with pytest.raises(
        ValueError, match=r"no hook point 'blocks\.0\.hook_z'; the nearest are .*blocks\.0\.attn\.hook_z"
    ):
        select(model, "blocks.0.hook_z")
    with pytest.raises(ValueError, match="there are hook_embed"):
        select(model, "xyzzy")
    assert select(model, ["hook_embed"]) == {"hook_embed"}
    assert HookPoint("blocks.11.attn.hook_z").layer() == 11
    with pytest.raises(ValueError, match="belongs to no layer"):
        HookPoint("hook_embed").layer()


def test_recording():
    model, t = random_model(), tokens()
    _, everything = run_with_cache(model, t)
    assert tuple(everything) == model.hook_names  # in the order in which they come by
    _, some = run_with_cache(model, t, lambda name: name.endswith("resid_pre"))
    assert set(some) == {"blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"}
    stream, early = run_with_cache(model, t, stop_at_layer=1)
    assert torch.equal(stream, early["resid_post", 0])
    assert not any(name.startswith(("blocks.1", "ln_final")) for name in early)
    _, late = run_with_cache(model, stream, start_at_layer=1)
    assert torch.allclose(late["resid_post", 1], everything["resid_post", 1], atol=1e-5)
    with pytest.raises(KeyError, match="was not recorded; the nearest are"):
        some["pattern", 0]
    assert isinstance(some, Cache)
    assert ("resid_pre", 0) in some
    assert ("pattern", 0) not in some
    assert some.get(("pattern", 0)) is None
    assert some.get("blocks.0.hook_resid_pre") is some["resid_pre", 0]


def test_recorded_activations_can_be_differentiated_by():
    model, t = random_model(), tokens()
    with torch.enable_grad(), hooked(model, [("hook_embed", lambda x, hook: x.requires_grad_())]):
        logits, cache = run_with_cache(model, t)
        gradient = torch.autograd.grad(logits[0, -1, 3], cache["resid_mid", 0])[0]
    step = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)) * 1e-3

    def nudged(sign):
        with hooked(model, [("blocks.0.hook_resid_mid", lambda x, hook: x + sign * step)]):
            return model(t)[0, -1, 3]

    assert (gradient * step).sum().item() == pytest.approx((nudged(1) - nudged(-1)).item() / 2, rel=0.02, abs=1e-5)
