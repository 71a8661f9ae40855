"""Loading models: GPT-2-shaped weights made on the spot give Hugging Face's logits; wrong files are refused clearly."""

import json
import shutil
import sys

import pytest
import torch

from interp_edu import pretrained, tinyworld, weights
from interp_edu.pretrained import ModelError
from interp_edu.transformer import Config, Transformer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with a GPT-2-shaped model of random weights in the usual files, and Hugging Face's own model of it."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    settings = transformers.GPT2Config(n_layer=3, n_head=4, n_embd=48, n_positions=40, vocab_size=101)
    theirs = transformers.GPT2LMHeadModel(settings).eval()
    for parameter in theirs.parameters():  # also biases and LayerNorm weights, which start as zeros and ones
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    return folder, theirs


def save_tokenizer(folder):
    """A byte-pair encoding in GPT-2's own two files: bytes, and a few words."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab, merges = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}, []
    for word in (" Mary", " John", " gave"):
        parts = list(word.replace(" ", "Ġ"))
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if "".join(pair) not in vocab:
                vocab["".join(pair)] = len(vocab)
                merges.append(" ".join(pair))
            parts = ["".join(pair), *parts[2:]]
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 40), (3, 7), (16, 32)])
def test_same_logits_as_hugging_face(gpt2, batch, length):
    folder, theirs = gpt2
    tokens = torch.randint(101, (batch, length), generator=torch.Generator().manual_seed(length))
    ours = pretrained.load(folder)
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert expected.std() > 1
    assert (ours(tokens) - expected).abs().max() < 1e-4


def test_same_gradients_as_hugging_face(gpt2):
    folder, theirs = gpt2
    tokens = torch.randint(101, (3, 11), generator=torch.Generator().manual_seed(0))
    ours = pretrained.load(folder).requires_grad_()
    for model in (ours, theirs):
        model.zero_grad()
    logits = ours(tokens)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    theirs(tokens, labels=tokens).loss.backward()
    block, their_block = ours.blocks[1], theirs.transformer.h[1]
    W_QKV = torch.cat([getattr(block.attn, f"W_{x}").grad.transpose(0, 1).flatten(1) for x in "QKV"], dim=1)
    b_QKV = torch.cat([getattr(block.attn, f"b_{x}").grad.flatten() for x in "QKV"])
    embedding = ours.embed.W_E.grad + ours.unembed.W_U.grad.T  # one and the same tensor in GPT-2
    for mine, other in [
        (W_QKV, their_block.attn.c_attn.weight),
        (b_QKV, their_block.attn.c_attn.bias),
        (block.attn.W_O.grad.flatten(0, 1), their_block.attn.c_proj.weight),
        (block.mlp.W_in.grad, their_block.mlp.c_fc.weight),
        (block.ln2.w.grad, their_block.ln_2.weight),
        (embedding, theirs.transformer.wte.weight),
        (ours.pos_embed.W_pos.grad, theirs.transformer.wpe.weight),
    ]:
        assert torch.allclose(mine, other.grad, atol=1e-5 * other.grad.abs().max().item() + 1e-7, rtol=1e-3)


def test_other_formats_give_the_same_model(gpt2, tmp_path):
    folder, theirs = gpt2
    tokens = torch.arange(12)[None]
    expected = pretrained.load(folder)(tokens)
    bare, lens = tmp_path / "bare", tmp_path / "lens"
    bare.mkdir()
    shutil.copy(folder / "config.json", bare)
    state = {k.removeprefix("transformer."): v for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    state["h.0.attn.bias"] = torch.ones(1, 1, 40, 40).tril()  # older files carry the mask
    torch.save(state, bare / "pytorch_model.bin")
    assert torch.equal(pretrained.load(bare)(tokens), expected)
    pretrained.save(pretrained.load(folder), lens)
    assert torch.equal(pretrained.load(str(lens))(tokens), expected)
    with pytest.raises(FileExistsError, match="choose another folder"):
        pretrained.save(pretrained.load(folder), lens)


def test_a_folder_as_transformer_lens_writes_it(tmp_path):
    model = Transformer(Config(n_layers=2, d_model=16, n_ctx=8, d_head=4, n_heads=4, d_vocab=11, attn_only=True))
    settings = {"n_layers": 2, "d_model": 16, "n_ctx": 8, "d_head": 4, "n_heads": 4, "d_vocab": 11, "attn_only": True}
    settings |= {"act_fn": None, "normalization_type": "LN", "positional_embedding_type": "standard", "seed": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    masks = {f"blocks.{i}.attn.mask": torch.ones(8, 8).tril().bool() for i in range(2)}
    torch.save(model.state_dict() | masks, tmp_path / "model_final.pth")
    tokens = torch.arange(8)[None]
    assert torch.allclose(pretrained.load(tmp_path)(tokens), model(tokens), atol=1e-6)
    for key, value in {"positional_embedding_type": "rotary", "n_layers": "two", "act_fn": "swiglu"}.items():
        (tmp_path / "config.json").write_text(json.dumps(settings | {key: value}))
        with pytest.raises(ModelError, match=r"config\.json"):
            pretrained.load(tmp_path)


def test_wrong_files_are_refused(gpt2, tmp_path):
    folder, _ = gpt2
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    settings = json.loads(config.read_text())
    for change, words in [
        ({"n_layer": 4}, "'h.3"),
        ({"vocab_size": 99}, r"embed\.W_E: \(101, 48\) instead of \(99, 48\)"),
        ({"model_type": "llama"}, "only GPT-2's architecture"),
        ({"activation_function": "silu"}, "activation_function = 'silu'"),
    ]:
        config.write_text(json.dumps(settings | change))
        with pytest.raises(ModelError, match=words):
            pretrained.load(tmp_path)
    config.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        pretrained.load(tmp_path)
    config.write_text(json.dumps(settings))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cut off or damaged"):
        pretrained.load(tmp_path)
    file.unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        pretrained.load(tmp_path)
    config.unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        pretrained.load(tmp_path)


def test_absent_models_say_what_to_put_where(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"config\.json, model\.safetensors, tokenizer\.json.*hf download openai-comm"):
        pretrained.load("gpt2")
    with pytest.raises(
        ModelError,
        match="known by name are 'tinyworld', 'phrases-2l', 'phrases-1l', 'distances-2l', 'recall', 'recall-plain', 'gpt2'",
    ):
        pretrained.load("gpt5")
    with pytest.raises(ModelError, match="seeds 0, 1, 2, not 7"):
        pretrained.load("tinyworld", seed=7)


@pytest.mark.parametrize(("name", "n_layers"), [("phrases-2l", 2), ("phrases-1l", 1), ("distances-2l", 2)])
def test_small_models(name, n_layers):
    models = [pretrained.load(name, seed=seed) for seed in (0, 1, 2)]
    shipped = weights.load("small")
    for seed, model in enumerate(models):
        assert model.cfg == pretrained.small_config(name)
        assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_vocab, model.cfg.attn_only) == (
            n_layers,
            4,
            49,
            True,
        )
        assert all(torch.equal(shipped[f"{name}.{seed}.{key}"], value) for key, value in model.state_dict().items())
        assert not any(p.requires_grad for p in model.parameters())
        assert model.tokenizer.vocab == [tinyworld.BOS, *tinyworld.NAMES]
        assert model(model.tokenizer.encode("Mary John Tom Mary")).shape == (1, 5, 49)
    assert torch.equal(pretrained.load(name).embed.W_E, models[0].embed.W_E)
    assert not torch.equal(models[0].embed.W_E, models[1].embed.W_E)


def test_small_models_on_the_way():
    end = pretrained.load("phrases-2l")
    for step in (0, 40, 80, 100, 120, 140, 160, 180, 200, 240, 320):
        model = pretrained.load("phrases-2l", step=step)
        assert not torch.equal(model.embed.W_E, end.embed.W_E)
    start = Transformer(pretrained.small_config("phrases-2l"), torch.Generator().manual_seed(0)).state_dict()
    for key, value in pretrained.load("phrases-2l", seed=0, step=0).state_dict().items():
        assert torch.equal(value, start[key].half().float()), key


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("phrases-2l", {"seed": 3}, "seeds 0, 1, 2, not 3"),
        ("distances-2l", {"seed": -1}, "seeds 0, 1, 2, not -1"),
        (
            "phrases-2l",
            {"step": 41},
            r"step 41 of phrases-2l, seed 0, was not kept; .* these were: \[0, 40, 80, 100, 120,",
        ),
        ("phrases-2l", {"step": 4}, "step 4 of phrases-2l"),  # and not 40
        (
            "phrases-2l",
            {"step": 120, "seed": 1},
            "step 120 of phrases-2l, seed 1, was not kept; of '?phrases-2l'?, seed 0",
        ),
        ("phrases-1l", {"step": 120}, "step 120 of phrases-1l, seed 0, was not kept; of '?phrases-2l'?"),
        ("tinyworld", {"step": 0}, "no steps of training were kept of 'tinyworld', only of '?phrases-2l'?"),
        ("gpt2", {"step": 120}, "no steps of training were kept of 'gpt2'"),
        ("phrases-3l", {}, "there is no model and no folder called 'phrases-3l'"),
    ],
    ids=str,
)
def test_small_models_that_do_not_exist(name, settings, words):
    with pytest.raises(ModelError, match=words):
        pretrained.load(name, **settings)


def test_gpt2_from_the_hub_cache(gpt2, tmp_path, monkeypatch):
    import huggingface_hub.constants

    folder, _ = gpt2
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--openai-community--gpt2"
    snapshot = repository / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    tokens = torch.arange(12)[None]
    assert torch.equal(pretrained.load("gpt2")(tokens), pretrained.load(folder)(tokens))


@pytest.mark.parametrize("whole", [True, False])
def test_gpt2_tokenizer_from_local_files(gpt2, tmp_path, monkeypatch, whole):
    folder, _ = gpt2
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    save_tokenizer(tmp_path)
    if whole:  # the same in one file
        from tokenizers import ByteLevelBPETokenizer

        tokenizer = ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
        tokenizer.add_special_tokens([tinyworld.BOS])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "vocab.json").unlink()
    tokenizer = pretrained.load(tmp_path).tokenizer
    tokens = tokenizer.encode(" Mary gave John")
    assert tokenizer.str_tokens(tokens[0]) == [tinyworld.BOS, " Mary", " gave", " John"]
    assert tokenizer.decode(tokens[0, 1:]) == " Mary gave John"
    assert tokenizer.encode([" Mary", " John"], bos=False).tolist() == [
        [tokenizer.id(" Mary")],
        [tokenizer.id(" John")],
    ]
    with pytest.raises(ValueError, match="is 4 tokens"):
        tokenizer.id("Mary")
    with pytest.raises(ValueError, match="encode them singly"):
        tokenizer.encode([" Mary", " Mary gave"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if it were not installed
    with pytest.raises(ModelError, match=r"pip install 'interp_edu\[gpt2\]'"):
        pretrained.load(tmp_path)
