"""The same function with other weights: what each transform promises, and that it keeps the function."""

import pytest
import torch

from interp_edu.folding import center_unembed, center_writing_weights, fold_layer_norm, fold_value_biases
from interp_edu.hooks import run_with_cache
from interp_edu.transformer import Config
from tests.test_transformer import SHAPE, random_model, tokens


@pytest.mark.parametrize("attn_only", [False, True])
def test_each_keeps_the_function(attn_only):
    cfg = Config(**{**vars(SHAPE), "attn_only": attn_only, "d_mlp": 0 if attn_only else 28})
    model, t = random_model(cfg), tokens()
    expected = model(t)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for change in (fold_layer_norm, center_writing_weights, fold_value_biases):
        assert torch.allclose(change(model)(t), expected, atol=2e-4)
    assert torch.allclose(center_unembed(model)(t).log_softmax(-1), expected.log_softmax(-1), atol=2e-4)
    both = center_unembed(fold_value_biases(center_writing_weights(fold_layer_norm(model))))
    assert torch.allclose(both(t).log_softmax(-1), expected.log_softmax(-1), atol=2e-4)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items()), "the old model changed"


def test_what_each_promises():
    model, t = random_model(), tokens()
    folded = fold_layer_norm(model)
    assert folded.cfg.normalization_type == "LNPre"
    assert not any("ln" in name for name in folded.state_dict())
    assert folded.blocks[1].attn.W_Q.mean(dim=1).abs().max() < 1e-6  # nothing is read along (1, ..., 1)
    assert folded.unembed.W_U.mean(dim=0).abs().max() < 1e-6
    assert torch.allclose(run_with_cache(folded, t)[1]["q", 1], run_with_cache(model, t)[1]["q", 1], atol=1e-4)
    centred = center_writing_weights(model)
    assert run_with_cache(centred, t)[1]["resid_post", 1].mean(dim=-1).abs().max() < 1e-5
    assert center_unembed(model)(t).mean(dim=-1).abs().max() < 1e-4
    assert fold_value_biases(model).blocks[0].attn.b_V.abs().max() == 0


def test_device_dtype_gradients_and_tokenizer_carry_over():
    model = random_model().double()
    model.tokenizer = "words"
    folded = fold_layer_norm(model.requires_grad_())
    assert folded.embed.W_E.dtype == torch.float64
    assert folded.embed.W_E.requires_grad
    assert folded.tokenizer == "words"
    assert torch.allclose(folded(tokens()), model(tokens()), atol=1e-10)


def test_what_cannot_be_done_is_refused():
    without = random_model(Config(**{**vars(SHAPE), "normalization_type": None}))
    with pytest.raises(ValueError, match="no LayerNorm to fold"):
        fold_layer_norm(without)
    with pytest.raises(ValueError, match="no LayerNorm to fold"):
        fold_layer_norm(fold_layer_norm(random_model()))
    with pytest.raises(ValueError, match="centring would change it"):
        center_writing_weights(without)
