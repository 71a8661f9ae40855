"""The training loop for language models, and the course model that it makes. All recipes stand in `recipes.py`."""

import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp_edu import tinyworld
from interp_edu.transformer import Transformer

Tensors = dict[str, Tensor]


def progress(label: str, steps: int) -> Callable[[int], None]:
    """An `on_step` that keeps one line of progress up to date, with the time that is left."""
    start = time.monotonic()

    def show(step: int) -> None:
        if (step + 1) % max(1, steps // 100) == 0:
            done, spent = (step + 1) / steps, time.monotonic() - start
            end = "\n" if step + 1 == steps else ""
            sys.stderr.write(f"\r{label}: {done:4.0%}, {spent:.0f} s, {spent / done - spent:.0f} s left {end}")
            sys.stderr.flush()

    return show


def train_language_model(
    model: Transformer,
    draw: Callable[[int], Int[Tensor, "batch pos"]],
    *,
    steps: int,
    lr: float = 3e-3,
    state: Path | None = None,
    save_every: int = 200,
    on_step: Callable[[int], None] | None = None,
) -> Transformer:
    """Trains in place to predict each next token of `draw(step)`, with AdamW; returns the model.

    Warm-up over 50 steps, constant for the first half, then linear down to 2 %. As the data depend on the step alone,
    training that was interrupted goes on from the file `state` as if nothing had happened.

    Raises:
        ValueError: `state` belongs to another model or schedule, or the loss is no longer a number.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    this, start = repr((model.cfg, steps, lr)), 0
    if state is not None and state.exists():
        saved = torch.load(state, weights_only=True)
        if saved["this"] != this:
            raise ValueError(f"{state} holds another training that was interrupted: delete it to start anew")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    for step in range(start, steps):
        falling = 1 - 0.98 * max(0.0, (step - steps / 2) / (steps / 2))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * falling
        tokens = draw(step)
        loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        if not loss.isfinite():
            raise ValueError(f"the loss of step {step} is {loss.item()}: lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if state is not None and (step + 1) % save_every == 0:
            half_written = state.with_suffix(".new")
            saved = {"this": this, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(saved, half_written)
            half_written.replace(state)
        if on_step is not None:
            on_step(step)
    if state is not None:
        state.unlink(missing_ok=True)
    return model


COURSE_STEPS = 4500
PHRASES = 500  # steps that see nothing but phrases
FADE = 200  # steps in which the corpus fades in


def course_model(seed: int, state: Path) -> Tensors:
    """The course model, from scratch: first induction heads, then the corpus.

    In short rows of three phrases in random order, induction heads form within 400 steps. In rows of random words that
    repeat after 21 to 31 they had not formed after 1,000; in rows of 24 that repeat after 8 to 12 the loss fell as fast
    as here, but without a head that looks right after the match: chapter 6 shows where they look instead.
    """
    tokenizer, mix = tinyworld.TOKENIZER, tinyworld.Mix()

    def draw(step: int) -> Tensor:
        rng = random.Random(f"{seed} {step}")
        if step < PHRASES:
            rows = [tinyworld.phrases(rng, tokenizer).words for _ in range(80)]
            return torch.tensor([[tokenizer.bos, *(tokenizer.ids[word] for word in row)] for row in rows])
        repeats = max(mix.repeats, 1 - (step - PHRASES) / FADE)
        return tinyworld.batch(rng, tokenizer, 32, replace(mix, repeats=repeats))

    show = progress(f"tinyworld, seed {seed}", COURSE_STEPS)
    model = train_language_model(course_start(seed), draw, steps=COURSE_STEPS, state=state, on_step=show)
    return {name: value.detach().half() for name, value in model.state_dict().items()}


def course_start(seed: int) -> Transformer:
    """The course model before training.

    Sinusoidal positions, at a third of the tokens' size: with larger ones, heads come to look two or five tokens back
    as well as one, and induction heads beside the word that they copy. The MLPs write nothing yet.
    """
    generator = torch.Generator().manual_seed(seed)
    model, cfg = Transformer(tinyworld.CONFIG, generator), tinyworld.CONFIG
    size = {"W_E": 0.3, "W_U": 0.05, "W_O": (2 * cfg.n_layers * cfg.d_model) ** -0.5, "W_out": 0.0}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if last.startswith("W_"):
                parameter.normal_(0, size.get(last, cfg.d_model**-0.5), generator=generator)
        rate = 20 ** (-torch.arange(0, cfg.d_model, 2) / cfg.d_model)  # so that all of them tell near positions apart
        angle = torch.arange(cfg.n_ctx)[:, None] * rate
        model.pos_embed.W_pos.copy_(0.15 * torch.cat([angle.sin(), angle.cos()], dim=1))
    return model


def course_quality(tensors: Tensors) -> dict[str, float]:
    """How good the course model is, on names, templates and paraphrases that training held out."""
    model, tokenizer = Transformer(tinyworld.CONFIG), tinyworld.TOKENIZER
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    model.requires_grad_(False)
    rng = random.Random("quality")
    sentences = [tinyworld.indirect_object(rng, held_out=True) for _ in range(1000)]
    logits, rows = _logits_at_end(model, sentences), range(len(sentences))
    io = logits[rows, [tokenizer.id(s.answer or "") for s in sentences]]
    difference = io - logits[rows, [tokenizer.id(s.words[s.roles["S2"]]) for s in sentences]]
    told = [(fact, n) for fact in tinyworld.FACTS for n in range(6) if tinyworld.held_out_paraphrase(fact, n)]
    facts = [tinyworld.tell(fact, n) for fact, n in told]
    aside = [
        tinyworld.tell(fact, n, f", who knows {' '.join(rng.choice(tinyworld.FACTS[:288]).subject)} well ,")
        for fact, n in told
        if fact.subject[0] in tinyworld.FIRST
    ]
    losses = repeated_losses(model, len(tokenizer), torch.Generator().manual_seed(0))
    return {
        "indirect_object_accuracy": (difference > 0).float().mean().item(),
        "indirect_object_top1": (io == logits.max(dim=-1).values).float().mean().item(),
        "logit_difference": difference.mean().item(),
        "facts_top1": _top1(model, facts),
        "facts_top1_with_aside": _top1(model, aside),
        "repeats_first_half_loss": losses[:31].mean().item(),
        "repeats_second_half_loss": losses[32:].mean().item(),
    }


def repeated_losses(model: Transformer, d_vocab: int, generator: torch.Generator) -> Float[Tensor, "pos"]:
    """The mean loss of each of 62 tokens: 31 random ones, then the same again, over 500 rows.

    Entry 31 is the first of the second half: that the row starts again there, nobody can know.
    """
    half = torch.randint(1, d_vocab, (500, 31), generator=generator)
    tokens = torch.cat([torch.zeros(500, 1, dtype=torch.int64), half, half], dim=1)
    return F.cross_entropy(model(tokens)[:, :-1].mT, tokens[:, 1:], reduction="none").mean(dim=0)


def _logits_at_end(model: Transformer, sentences: list[tinyworld.Sentence]) -> Float[Tensor, "sentence d_vocab"]:
    """The logits for the answer of each sentence, which stands alone in its row."""
    ids = [[0, *(tinyworld.TOKENIZER.ids[word] for word in s.words)] for s in sentences]
    tokens = torch.tensor([row + [0] * (tinyworld.N_CTX - len(row)) for row in ids])
    return model(tokens)[range(len(ids)), [s.roles["END"] + 1 for s in sentences]]


def _top1(model: Transformer, sentences: list[tinyworld.Sentence]) -> float:
    """The share of sentences whose answer has the highest logit."""
    answers = torch.tensor([tinyworld.TOKENIZER.id(s.answer or "") for s in sentences])
    return (_logits_at_end(model, sentences).argmax(dim=-1) == answers).float().mean().item()
