"""Training sparse autoencoders: one loop for all kinds, the gradient by hand, on one process or several.

Five matrix products are all that a step of a ReLU SAE must do: encode, decode, and the gradients of W_dec, f and
W_enc. Autograd does a sixth (for b_dec, if x is centred) and goes through memory many times more; `benchmarks/sae.py`
runs the loops side by side. A TopK SAE needs one product, and for the rest only the k latents that are on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from interp_edu.sparse_autoencoders import SAE

CHUNK_FLOATS = 2**22  # a batch is taken in equal chunks of about so many latents, 16 MB
BANDWIDTH = 0.1  # of JumpReLU's kernel, in units of x: how near its threshold a pre-activation moves it


@dataclass
class Gradients:
    """The gradients of the loss, all parts of one flat tensor, and what a batch showed in passing.

    `W_enc` lies in memory like W_dec, a latent's weights side by side: so do rows of `SAE.W_enc.T` while it is trained.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, "d_in"]
    threshold: Float[Tensor, "d_sae"]
    activity: Float[Tensor, "d_sae"]  # the mean of each latent over the batch: 0 if it was never on
    squared_error: Float[Tensor, ""]  # mean over the batch of |x - x_hat|^2
    flat: Float[Tensor, "all"]

    @classmethod
    def zeros(cls, d_in: int, d_sae: int, dtype: torch.dtype = torch.float32) -> "Gradients":
        sizes = [d_in * d_sae, d_sae, d_in * d_sae, d_in, d_sae, d_sae, 1]
        flat = torch.zeros(sum(sizes), dtype=dtype)
        W_enc, b_enc, W_dec, b_dec, threshold, activity, error = flat.split(sizes)
        return cls(
            W_enc.view(d_sae, d_in).T, b_enc, W_dec.view(d_sae, d_in), b_dec, threshold, activity, error.view(()), flat
        )


@torch.no_grad()
def add_gradients(
    sae: SAE, x: Float[Tensor, "batch d_in"], sparsity: float, to: Gradients, batch: int | None = None
) -> None:
    """Adds the gradients of |x - x_hat|^2 + sparsity * (|f|_1, or for JumpReLU |f|_0), a mean over `batch` samples.

    `x` may be a part of them. With e = 2 (x_hat - x) / batch: W_dec gets f^T e and f gets e W_dec^T, which goes to
    W_enc and b_enc where latents are on. A threshold has no gradient proper; it gets Rajamanoharan et al.'s estimate
    (2024b, section 3): what switching a latent would do to the loss, from samples within BANDWIDTH / 2 of switching.
    """
    batch = len(x) if batch is None else batch
    for rows in x.chunk(max(1, round(len(x) * sae.d_sae / CHUNK_FLOATS)) if sae.k is None else 1):
        if sae.k is not None:
            _add_top_k(sae, rows, to, batch)
            continue
        pre = torch.addmm(sae.b_enc, rows, sae.W_enc)
        f = pre.relu_() if sae.threshold is None else torch.where(pre > sae.threshold, pre, 0.0)
        error = torch.addmm(sae.b_dec, f, sae.W_dec).sub_(rows)
        to.squared_error += error.square().sum() / batch
        error.mul_(2 / batch)
        to.W_dec.addmm_(f.T, error)
        to.b_dec += error.sum(dim=0)
        penalty = rows.new_full((1, 1), sparsity / batch if sae.threshold is None else 0.0)
        to_f = torch.addmm(penalty, error, sae.W_dec.T)
        if sae.threshold is not None:
            near = (pre - sae.threshold).abs() < BANDWIDTH / 2
            switching = torch.where(near, sae.threshold * to_f + sparsity / batch, 0.0).sum(dim=0)
            to.threshold -= switching / BANDWIDTH
        torch.ops.aten.threshold_backward.grad_input(to_f, f, 0.0, grad_input=to_f)  # zero where the latent is off
        to.W_enc.T.addmm_(to_f.T, rows)
        to.b_enc += to_f.sum(dim=0)
        to.activity += f.sum(dim=0) / batch


def _add_top_k(sae: SAE, rows: Tensor, to: Gradients, batch: int) -> None:
    """The same for TopK, in sums over the latents that are on: k of d_sae."""
    centred = rows - sae.b_dec
    values, index = torch.addmm(sae.b_enc, centred, sae.W_enc).topk(sae.k or 1, dim=1, sorted=False)
    values.relu_()
    with torch.enable_grad():
        x_hat = F.embedding_bag(index, sae.W_dec, mode="sum", per_sample_weights=values.requires_grad_())
    error = x_hat.detach() - centred
    to.squared_error += error.square().sum() / batch
    error.mul_(2 / batch)
    (to_f,) = torch.autograd.grad(x_hat, values, error)
    values = values.detach()
    to_f = to_f.mul_(values > 0)
    order = index.flatten().argsort()  # the samples of each latent, latent by latent
    latents, samples = index.flatten()[order], order // index.shape[1]
    on, counts = latents.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    for rows_of, weight, parameter in ((error, values, to.W_dec), (centred, to_f, to.W_enc.T)):
        parameter[on] += F.embedding_bag(
            samples, rows_of, starts, mode="sum", per_sample_weights=weight.flatten()[order]
        )
    to_b_enc = torch.zeros_like(to.b_enc).index_add_(0, index.flatten(), to_f.flatten())
    to.b_enc += to_b_enc
    to.b_dec += error.sum(dim=0) - to_b_enc @ sae.W_enc.T
    to.activity.index_add_(0, index.flatten(), values.flatten() / batch)


# Keeping latents honest and alive ------------------------------------------------------------------


@torch.no_grad()
def unit_rows(W_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Gives every row length 1, in place. Without this L1 costs nothing: f can shrink while W_dec grows."""
    F.normalize(W_dec, dim=1, out=W_dec)


@torch.no_grad()
def remove_parallel(gradient: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Takes from each row of the gradient, in place, what points along that row of W_dec, which has length 1.

    Else Adam would spend its step size on a length that is put back at once. (Bricken et al. 2023, appendix.)
    """
    gradient.addcmul_((gradient * W_dec).sum(dim=1, keepdim=True), W_dec, value=-1)


@torch.no_grad()
def resample(
    sae: SAE, dead: Int[Tensor, "dead"], x: Float[Tensor, "batch d_in"], generator: Generator | None = None
) -> Int[Tensor, "revived"]:
    """Points dead latents, in place, at samples that are explained badly; returns which were revived.

    Each gets a sample of its own, drawn with a probability that goes with its squared loss, as direction; the encoder
    reads along it, at a fifth of the living latents' mean length. If there are fewer such samples than dead latents,
    the rest waits. (Bricken et al. 2023, appendix "Neuron Resampling".)
    """
    alive = torch.ones(sae.d_sae, dtype=torch.bool)
    alive[dead] = False
    loss = (x - sae(x)).square().sum(dim=1)
    weight = (loss / loss.max()).square()
    dead = dead[: int((weight > 0).sum())]  # nan, and so nobody, if all are perfect
    if not len(dead):
        return dead
    chosen = torch.multinomial(weight, len(dead), generator=generator)
    directions = F.normalize(x[chosen] - sae.b_dec, dim=1)
    length = 0.2 * sae.W_enc[:, alive].norm(dim=0).mean() if alive.any() else torch.tensor(0.2)
    sae.W_dec[dead] = directions
    sae.W_enc[:, dead] = length * directions.T
    # An encoder that does not centre x itself has to be told where the middle is.
    sae.b_enc[dead] = 0.0 if sae.k is not None else -(directions @ sae.b_dec) * length
    if sae.threshold is not None:
        sae.b_enc[dead] += sae.threshold[dead]  # else it would be too weak to pass
    return dead


# The loop ------------------------------------------------------------------------------------------

RESAMPLE_UNTIL = 0.7  # of the training: whoever is revived later has no time to settle


@dataclass
class Log:
    """What a training showed: for each step the mean of |x - x_hat|^2, and when how many latents were revived."""

    squared_error: list[float] = field(default_factory=list)
    revived: dict[int, int] = field(default_factory=dict)


def train(
    sae: SAE,
    batches: Callable[[int], Float[Tensor, "batch d_in"]],
    *,
    steps: int,
    sparsity: float = 0.0,
    lr: float = 1e-3,
    resample_every: int | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Log:
    """Trains an SAE of any kind, in place, on `batches(step)`, with Adam.

    The learning rate and the sparsity grow over the first twentieth of the steps; the rate falls to zero in the last
    fifth. Directions keep length 1. Every `resample_every` steps, latents that were never on since the last time are
    revived.

    If torch.distributed is set up (`torchrun`), each process works on its share of every batch and the gradients are
    summed: the result is that of one process, up to the order of summation. `batches` must give the same in each.

    Raises ValueError for a batch of the wrong shape, or if the loss is no longer a number.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # In memory as W_dec is, like the gradient; a copy, as a tied start would be one tensor for both.
    sae.W_dec = sae.W_dec.contiguous()  # fused Adam pairs entries by their place in memory
    sae.W_enc = sae.W_enc.T.clone(memory_format=torch.contiguous_format).T
    g = Gradients.zeros(sae.d_in, sae.d_sae, sae.W_enc.dtype)
    given = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, "threshold": sae.threshold}
    parameters = {name: torch.nn.Parameter(x, requires_grad=False) for name, x in given.items() if x is not None}
    for name, parameter in parameters.items():
        parameter.grad = getattr(g, name)
    optimizer = torch.optim.Adam(parameters.values(), lr=lr, betas=(0.9, 0.999), fused=True)
    log, active = Log(), torch.zeros(sae.d_sae)
    unit_rows(sae.W_dec)
    for step in range(steps):
        warm = min(1.0, (step + 1) / max(1, steps // 20))
        optimizer.param_groups[0]["lr"] = lr * min(warm, (steps - step) / max(1, steps // 5))
        x = batches(step).to(sae.W_enc.dtype)
        if x.ndim != 2 or x.shape[1] != sae.d_in:
            raise ValueError(f"a batch must be [batch, {sae.d_in}], not {list(x.shape)}")
        g.flat.zero_()
        add_gradients(sae, x[rank::world], sparsity * warm, g, batch=len(x))
        if world > 1:
            dist.all_reduce(g.flat)
        log.squared_error.append(g.squared_error.item())
        if not g.squared_error.isfinite():
            raise ValueError(f"the loss of step {step} is {log.squared_error[-1]}: lower the learning rate")
        remove_parallel(g.W_dec, sae.W_dec)
        optimizer.step()
        unit_rows(sae.W_dec)
        if sae.threshold is not None:
            sae.threshold.clamp_(min=0)
        active += g.activity
        if resample_every and (step + 1) % resample_every == 0:
            if step < RESAMPLE_UNTIL * steps:
                generator = torch.Generator().manual_seed(seed + step)
                revived = resample(sae, (active == 0).nonzero().flatten(), x, generator)
                _forget(optimizer, parameters, revived)
                log.revived[step + 1] = len(revived)
            active.zero_()
        if on_step is not None:
            on_step(step)
    return log


def _forget(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], latents: Tensor) -> None:
    """Adam's averages of these latents are those of somebody else: they start anew."""
    for name, parameter in parameters.items():
        for key in ("exp_avg", "exp_avg_sq"):
            if name != "b_dec":
                average = optimizer.state[parameter][key]
                (average.T if name == "W_enc" else average)[latents] = 0.0
