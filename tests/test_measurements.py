"""What is stated of GPT-2: the measurement by brute force on small models, and the facts of the shipped file."""

import functools
import itertools
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import save_file

from interp_edu import measurements, pretrained, recipes, tinyworld, weights
from interp_edu.__main__ import main
from interp_edu.circuits import Circuit
from interp_edu.handmade import ioi_model
from interp_edu.hooks import hooked, run_with_cache
from interp_edu.ioi import prompts
from interp_edu.measurements import (
    GPT2_CIRCUIT,
    GPT2_PUBLISHED,
    gpt2_attention,
    gpt2_measured,
    quality,
    read_most,
)
from interp_edu.pretrained import ModelError
from interp_edu.transformer import Config
from tests.test_transformer import SHAPE, random_model

MATRICES = ("W_Q", "W_K", "W_V", "W_O")


def attention_weights(model):
    """What the measurement needs, stacked by layer, as one may export it from TransformerLens."""
    names = [*MATRICES, "b_Q", "b_K", "b_V", "b_O"]
    stacked = {name: model.stacked(f"attn.{name}") for name in names}
    norms = {"ln1_w": model.stacked("ln1.w"), "ln1_b": model.stacked("ln1.b"), "ln_final_w": model.ln_final.w}
    return {name: value.clone() for name, value in (stacked | norms | {"W_pos": model.pos_embed.W_pos}).items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of GPT-2's kind, all random; its folder; and a file with nothing but its attention weights."""
    folder = tmp_path_factory.mktemp("small")
    model = random_model(Config(**{**vars(SHAPE), "n_layers": 3, "n_ctx": 40}))
    pretrained.save(model, folder / "model")
    save_file(attention_weights(model), folder / "attention.safetensors")
    return model, folder / "model", folder / "attention.safetensors"


def flat(x, dim):
    return x - x.mean(dim=dim, keepdim=True)


def by_hand(model):
    """Each head's QK and OV in float64: what is read through LayerNorm's weights and without the mean, and what is
    written without the mean; and its mean attention to the position before if it saw nothing but positions."""
    qk, ov, back_one = {}, {}, {}
    x = flat(model.pos_embed.W_pos[:32].double(), 1)
    x = x / torch.sqrt(x.square().mean(dim=1, keepdim=True) + model.cfg.eps)
    for layer, head in itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads)):
        p = {name: value[head].double() for name, value in model.blocks[layer].attn.named_parameters() if name != "b_O"}
        w, b = model.blocks[layer].ln1.w.double(), model.blocks[layer].ln1.b.double()
        W_Q, W_K, W_V = (flat(torch.diag(w) @ p[name], 0) for name in ("W_Q", "W_K", "W_V"))
        qk[layer, head], ov[layer, head] = W_Q @ W_K.T, W_V @ flat(p["W_O"], 1)
        q, k = ((x * w + b) @ p[f"W_{side}"] + p[f"b_{side}"] for side in "QK")
        given = []
        for position in range(1, 32):
            scores = k[: position + 1] @ q[position] / math.sqrt(model.cfg.d_head)
            given.append(scores.softmax(dim=0)[position - 1].item())
        back_one[layer, head] = sum(given) / len(given)
    return qk, ov, back_one


def test_measured_by_hand(small):
    model, folder, _ = small
    found = gpt2_attention(folder)
    assert set(found) == {"q_composition", "k_composition", "v_composition", "ov_norm", "back_one"}
    qk, ov, back_one = by_hand(model)
    for i, h in qk:
        assert found["ov_norm"][i, h].item() == pytest.approx(ov[i, h].norm().item(), rel=1e-4)
        assert found["back_one"][i, h].item() == pytest.approx(back_one[i, h], abs=1e-4)
        for j, k in qk:
            for side, reader in {"q": qk[j, k], "k": qk[j, k].T, "v": ov[j, k]}.items():
                expected = (ov[i, h] @ reader).norm() / (ov[i, h].norm() * reader.norm())
                entry = found[f"{side}_composition"][i, h, j, k]
                assert entry.dtype == torch.float16
                assert entry.item() == pytest.approx(expected.item(), rel=2e-3)
    assert max(back_one.values()) > 2 * min(back_one.values())


def test_a_folder_and_its_attention_alone_give_the_same(small):
    _, folder, file = small
    found = gpt2_attention(folder)
    for same in (gpt2_attention(file), gpt2_attention(str(file)), gpt2_attention(str(folder))):
        assert set(same) == set(found)
        for name, value in found.items():
            assert torch.allclose(same[name].float(), value.float(), atol=1e-3, rtol=1e-5), name


def test_attention_to_the_position_before_in_closed_form(small):
    """Zeros attend evenly: 1 / (p + 1) at each position p from 1 to 31."""
    model = random_model(Config(**{**vars(SHAPE), "n_ctx": 40}))
    for block in model.blocks:
        block.attn.W_Q.zero_()
        block.attn.b_Q.zero_()
    folded = measurements.fold_layer_norm(model)
    even = sum(1 / (p + 1) for p in range(1, 32)) / 31
    assert torch.allclose(measurements.back_one(folded), torch.full((2, 3), even))
    assert torch.allclose(measurements.back_one(folded, positions=2), torch.full((2, 3), 0.5))


def test_a_model_by_name():
    for source in ("tinyworld", measurements.Path("tinyworld")):  # the command line hands over a path
        assert gpt2_attention(source)["k_composition"].shape == (4, 6, 4, 6)


def wrong(tmp_path, change):
    model = random_model(Config(**{**vars(SHAPE), "n_ctx": 40}))
    path = tmp_path / "wrong.safetensors"
    tensors = attention_weights(model) | change
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    return path


def test_wrong_sources_are_refused(tmp_path):
    assert gpt2_attention(wrong(tmp_path, {}))["ov_norm"].shape == (2, 3)  # this one is right
    for source, words in [
        (tmp_path / "none.safetensors", "there is no file"),
        (tmp_path / "nowhere", "there is no model and no folder"),
        ("gpt5", "there is no model and no folder"),
    ]:
        with pytest.raises(ModelError, match=words):
            gpt2_attention(source)
    with pytest.raises(ModelError, match="does not hold stacked attention weights; it lacks W_K, ln1_w"):
        gpt2_attention(wrong(tmp_path, {"W_K": None, "ln1_w": None}))
    with pytest.raises(ModelError, match="it lacks axes"):
        gpt2_attention(wrong(tmp_path, {"W_Q": torch.randn(8, 12)}))


@pytest.mark.parametrize("name", ["W_pos", "b_Q", "b_K", "ln1_b"])
def test_what_the_attention_by_positions_needs_is_not_taken_as_zero(tmp_path, name):
    with pytest.raises(ModelError, match=f"it lacks {name}"):
        gpt2_attention(wrong(tmp_path, {name: None}))


@pytest.mark.parametrize(
    ("name", "shape"), [("W_O", (2, 3, 24, 5)), ("ln1_w", (2, 1)), ("W_K", (2, 1, 24, 5)), ("b_Q", (1, 3, 5))]
)
def test_weights_of_another_shape_are_refused(tmp_path, name, shape):
    """Not broadcast, and not left to an error of torch's."""
    with pytest.raises(ModelError, match=name):
        gpt2_attention(wrong(tmp_path, {name: torch.ones(shape)}))


def test_a_damaged_file_is_refused(small, tmp_path):
    path = tmp_path / "damaged.safetensors"
    for content in (small[2].read_bytes()[:1000], b"", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="cut off or damaged"):
            gpt2_attention(path)


def test_who_reads_most():
    table = torch.zeros(4, 2, 4, 2)
    table[1, 0, 2] = torch.tensor([0.3, 0.5])
    table[1, 0, 3] = torch.tensor([0.3, 0.1])
    table[1, 0, :2] = 9.0  # not above it
    table[1, 1, 3, 1] = 9.0  # another sender
    for k in (table, table.half()):
        heads, scores = zip(*read_most(k, (1, 0)), strict=True)
        assert heads == ("L2H1", "L2H0", "L3H0", "L3H1")
        assert scores == pytest.approx((0.5, 0.3, 0.3, 0.1), abs=1e-3)
    assert read_most(table, (1, 1))[0] == ("L3H1", 9.0)
    assert read_most(table, (3, 0)) == []


# What is shipped


def test_the_shipped_file_says_what_the_pages_say():
    shipped, stated = weights.load("gpt2_attention"), weights.manifest()["gpt2_attention"]["quality"]
    assert quality(shipped) == pytest.approx(stated, abs=1e-4)
    k, q = shipped["k_composition"], shipped["q_composition"]
    assert k.shape == q.shape == shipped["v_composition"].shape == (12, 12, 12, 12)
    assert shipped["ov_norm"].shape == shipped["back_one"].shape == (12, 12)
    assert min(x.min() for x in shipped.values()) > 0
    assert max(x.max() for name, x in shipped.items() if name != "ov_norm") <= 1

    above = {f"L{i}H{h}": k[4, 11, i, h].item() for i in range(5, 12) for h in range(12)}
    first = sorted(above, key=above.get, reverse=True)[:6]
    induction_heads = {"L5H1", "L5H5", "L6H9", "L7H2", "L7H10"}
    assert induction_heads < set(first)
    assert [head for head, _ in read_most(k, (4, 11))[:6]] == first
    assert len(read_most(k, (4, 11))) == 7 * 12
    median = sorted(above.values())[41]
    assert stated["l4h11_median_over_later_keys"] == pytest.approx(median, abs=1e-4)
    for head in first:
        assert stated[f"l4h11_into_{head.lower()}_keys"] == pytest.approx(above[head], abs=1e-4)
        assert above[head] > 2.5 * median
    movers = sum(q[8, 10, i, h].item() for i, h in ((9, 9), (9, 6), (10, 0))) / 3
    assert stated["l8h10_into_name_movers_queries"] == pytest.approx(movers, abs=1e-4)
    assert stated["l4h11_back_one_by_positions"] == pytest.approx(shipped["back_one"][4, 11].item(), abs=1e-4)


# The command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the command writes instead of among the shipped files; their manifest is there already."""
    shutil.copy(weights.FOLDER / "MANIFEST.toml", tmp_path)
    monkeypatch.setattr(recipes, "remake", functools.partial(recipes.remake, folder=tmp_path))
    return tmp_path


def test_the_command_measures_into_a_folder(folder, tmp_path_factory, capsys):
    elsewhere = tmp_path_factory.mktemp("gpt2")
    model = random_model(Config(12, 24, n_ctx=40, d_head=2, n_heads=12, d_vocab=5, d_mlp=8))  # as many heads as GPT-2
    pretrained.save(model, elsewhere / "model")
    save_file(attention_weights(model), elsewhere / "attention.safetensors")
    before, expected = weights.manifest(folder), gpt2_attention(elsewhere / "model")
    for source in ("model", "attention.safetensors"):
        assert main(["measure", "gpt2_attention", str(elsewhere / source)]) == 0
        assert "wrote gpt2_attention.safetensors" in capsys.readouterr().out
        after = weights.manifest(folder)
        entry = after["gpt2_attention"]
        assert entry["recipe"] == "python -m interp_edu measure gpt2_attention MODEL"
        assert entry["sha256"] != before["gpt2_attention"]["sha256"]
        assert all(entry == before[name] for name, entry in after.items() if name != "gpt2_attention")
        assert set(after) == set(before)
        written = weights.load("gpt2_attention", folder)  # the sha256 fits
        for name, value in expected.items():
            assert torch.allclose(written[name], value.float(), atol=1e-3, rtol=1e-5)
        assert entry["quality"] == pytest.approx(quality(written), abs=1e-4)
    assert {path.name for path in folder.iterdir()} == {"MANIFEST.toml", "gpt2_attention.safetensors"}
    assert weights.manifest()["gpt2_attention"] == before["gpt2_attention"]  # the shipped one is left alone


def test_the_command_refuses_with_words(small, folder, tmp_path, capsys):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(small[2].read_bytes()[:1000])
    before = (folder / "MANIFEST.toml").read_bytes()
    for source, words in {
        tmp_path / "nowhere": "there is no model and no folder",
        tmp_path / "none.safetensors": "there is no file",
        damaged: "cut off or damaged",
    }.items():
        assert main(["measure", "gpt2_attention", str(source)]) == 2
        assert words in capsys.readouterr().err
    assert (folder / "MANIFEST.toml").read_bytes() == before
    assert not (folder / "gpt2_attention.safetensors").exists()


def test_a_model_of_another_shape_leaves_the_result_as_it_was(small, folder, capsys):
    """The figures that the pages quote are of heads that it does not have."""
    assert main(["measure", "gpt2_attention", str(small[1])]) == 2
    assert "12 layers of 12 heads" in capsys.readouterr().err
    assert not (folder / "gpt2_attention.safetensors").exists()
    assert weights.manifest(folder) == weights.manifest()


@pytest.mark.parametrize(
    ("name", "command"), [("gpt2_attention", "measure gpt2_attention MODEL"), ("small", "train small")]
)
def test_a_missing_file_names_the_command_that_makes_it(tmp_path, name, command):
    shutil.copy(weights.FOLDER / "MANIFEST.toml", tmp_path)
    with pytest.raises(weights.WeightsError, match=f"remake it with `python -m interp_edu {command}`"):
        weights.load(name, tmp_path)


# Indirect objects --------------------------------------------------------------------------------

NAMES = ["Mary", "John", "Tom", "Anna", "James", "Lucy"]
GPT2_LIKE = Config(12, 24, n_ctx=64, d_head=2, n_heads=12, d_vocab=len(tinyworld.TOKENIZER), d_mlp=8)


def test_the_published_circuit():
    roles = list(GPT2_CIRCUIT.nodes.values())
    assert {role: roles.count(role) for role in roles} == {
        "duplicate-token head": 3,
        "previous-token head": 2,
        "induction head": 4,
        "S-inhibition head": 4,
        "name mover head": 3,
        "backup name mover head": 8,
        "negative name mover head": 2,
    }
    assert len(GPT2_CIRCUIT.names) == 26
    assert len({name.split()[0] for name in GPT2_CIRCUIT.names}) == 26
    movers = {name for name, role in GPT2_CIRCUIT.nodes.items() if role == "name mover head"}
    assert movers == {"L9H6 at END", "L9H9 at END", "L10H0 at END"}
    places = {role: name.partition(" at ")[2] for name, role in GPT2_CIRCUIT.nodes.items()}
    assert [places[role] for role in dict.fromkeys(roles)] == ["S2", "S1+1", "S2", *["END"] * 4]
    for name in GPT2_CIRCUIT.names:
        layer, head = map(int, name.split()[0][1:].split("H"))
        assert 0 <= layer < 12
        assert 0 <= head < 12


def test_the_published_figures_fit_together():
    """Of a difference of 3.56 the circuit misses 0.46, and ablated name movers cost 5 percent."""
    assert GPT2_PUBLISHED["faithfulness of the circuit"] == pytest.approx(1 - 0.46 / 3.56, abs=0.005)
    assert GPT2_PUBLISHED["difference left without the name movers"] == 1 - 0.05
    assert GPT2_PUBLISHED["logit difference"] == 3.56


def test_the_published_circuit_is_in_computing_order():
    layers = [int(name[1:].split("H")[0]) for name in GPT2_CIRCUIT.nodes]
    assert layers == sorted(layers)


def test_the_wired_model_measured_by_hand():
    wired = ioi_model()
    p = prompts(wired.model.tokenizer, 12)
    nodes = {"L0H0 at S2": "duplicate-token head", "L1H1 at END": "S-inhibition head", "L2H2 at END": "name mover head"}
    # An idle head has the role that nobody has here: what it writes, no word can hear.
    found = gpt2_measured(wired.model, p, Circuit(nodes | {"L2H0 at END": "negative name mover head"}))
    assert list(found) == list(GPT2_PUBLISHED)
    right = math.exp(10) / (math.exp(10) + len(wired.model.tokenizer) - 1)
    del found["negative copy score of the negative name movers"]  # nothing is raised, nothing lowered
    assert list(found.values()) == pytest.approx([10, 1, right, 1, 1, 1, 1, 0], abs=1e-4)
    less = gpt2_measured(
        wired.model, p, Circuit({**nodes, "L2H0": "name mover head", "L0H1": "negative name mover head"})
    )
    assert less["name movers' attention to IO"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-4)
    assert less["faithfulness of the circuit"] == pytest.approx(1, abs=1e-4)


def test_measured_head_by_head_on_a_model_of_gpt2s_shape():
    model, p = random_model(GPT2_LIKE), prompts(tinyworld.TOKENIZER, 6)
    found, rows = gpt2_measured(model, p), torch.arange(6)
    logits, cache = run_with_cache(model, p.tokens)
    end = logits[rows, p.roles["END"]]
    io, s = end[rows, p.io], end[rows, p.s]
    whole = (io - s).mean().item()

    def attention(heads, role):
        looks = [cache["pattern", i][rows, h, p.roles["END"], p.roles[role]].mean().item() for i, h in heads]
        return sum(looks) / len(looks)

    def share(kept):
        """What is left where all heads but `kept` say what they say on average over other names."""
        runs = [run_with_cache(model, p.abc(seed))[1] for seed in range(10)]

        def replace(z, hook):
            mean = torch.stack([run[hook.name] for run in runs]).mean(dim=0)
            for row, head in itertools.product(range(6), range(12)):
                for pos in range(z.shape[1]):
                    if not kept(row, pos, (hook.layer(), head)):
                        z[row, pos, head] = mean[row, pos, head]

        with hooked(model, [(lambda name: name.endswith("hook_z"), replace)]):
            left = model(p.tokens)[rows, p.roles["END"]]
        return (left[rows, p.io] - left[rows, p.s]).mean().item() / whole

    movers = [(9, 6), (9, 9), (10, 0)]
    where = {
        (int(layer), int(head)): role
        for name in GPT2_CIRCUIT.nodes
        for at, _, role in [name.partition(" at ")]
        for layer, head in [at[1:].split("H")]
    }
    expected = {
        "logit difference": whole,
        "IO above S": (io > s).float().mean().item(),
        "P(IO)": end.softmax(-1)[rows, p.io].mean().item(),
        "name movers' attention to IO": attention(movers, "IO"),
        "S-inhibition heads' attention to S2": attention([(7, 3), (7, 9), (8, 6), (8, 10)], "S2"),
        "faithfulness of the circuit": share(lambda row, pos, head: head in where and p.roles[where[head]][row] == pos),
        "difference left without the name movers": share(lambda row, pos, head: head not in movers),
    }
    assert abs(whole) > 0.1
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-3, rel=1e-3), name


def test_which_heads_copy_scores_are_stated(monkeypatch):
    table = torch.arange(144.0).view(12, 12)  # head h of layer i has 12 i + h
    monkeypatch.setattr(measurements, "copy_scores", lambda model, p, sign=1: sign * table)
    found = gpt2_measured(random_model(GPT2_LIKE), prompts(tinyworld.TOKENIZER, 2))
    assert found["copy score of the name movers, at least"] == 9 * 12 + 6  # L9H6, L9H9, L10H0
    assert found["negative copy score of the negative name movers"] == -(10 * 12 + 7 + 11 * 12 + 10) / 2


def byte_pairs(folder, words):
    """GPT-2's two files of a byte-pair encoding, with these words as single tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab, merges = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}, []
    for word in words:
        whole, *rest = word.replace(" ", "\u0120")
        for letter in rest:
            if whole + letter not in vocab:
                vocab[whole + letter] = len(vocab)
                merges.append(f"{whole} {letter}")
            whole += letter
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    return len(vocab) + 1  # and the one that begins a text


def test_from_a_folder_in_hugging_faces_format_to_the_figures(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = byte_pairs(tmp_path, [" " + name for name in NAMES])
    settings = transformers.GPT2Config(n_layer=12, n_head=12, n_embd=24, n_positions=200, vocab_size=size)
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(settings).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    model = pretrained.load(tmp_path)
    t = model.tokenizer

    p = prompts(t, 4, names=NAMES)
    for i, text in enumerate(p.texts):
        row = t.encode(text)[0]
        assert p.tokens[i, : len(row)].tolist() == row.tolist()
        assert p.roles["END"][i] == len(row) - 1
        words = t.str_tokens(row)
        io, s1, after, s2 = (words[p.roles[role][i]] for role in ("IO", "S1", "S1+1", "S2"))
        assert s1 == s2 != io
        assert {io[1:], s1[1:]} <= set(NAMES)
        assert text.count(s1[1:]) == 2
        assert after == " "  # the words in between are bytes here
    assert set(p.names) == {t.id(" " + name) for name in NAMES}
    with pytest.raises(ValueError, match="' Kate' is 5 tokens"):
        prompts(t, 4, names=[*NAMES, "Kate"])

    found = gpt2_measured(model, p)
    assert list(found) == list(GPT2_PUBLISHED)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
    with torch.no_grad():
        alone = torch.stack([theirs(t.encode(text)).logits[0, -1] for text in p.texts])
    rows = torch.arange(4)
    difference = (alone[rows, p.io] - alone[rows, p.s]).mean().item()
    assert found["logit difference"] == pytest.approx(difference, abs=1e-3)
    assert found["P(IO)"] == pytest.approx(alone.softmax(-1)[rows, p.io].mean().item(), abs=1e-4)


@pytest.mark.parametrize("circuit", [Circuit({"L2H2 at END": "name mover head"}), GPT2_CIRCUIT], ids=["role", "shape"])
def test_a_circuit_that_does_not_fit_is_refused_with_words(circuit):
    wired = ioi_model()
    with pytest.raises(ValueError, match="head"):
        gpt2_measured(wired.model, prompts(wired.model.tokenizer, 4), circuit)
