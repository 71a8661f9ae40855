"""From a language model to an autoencoder of its activations: harvest them once, train on them in random order.

Activations go to disk in shards, so that memory holds one shard at a time, an interrupted harvest goes on where it
stopped, and several processes share the work. An SAE needs them in random order: neighbouring words are alike.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from interp_edu.hooks import HookPoint, run_with_cache, select
from interp_edu.sae_training import train
from interp_edu.sparse_autoencoders import SAE
from interp_edu.transformer import Transformer

ABOUT = "about.json"
Rows = Callable[[int], Int[Tensor, "batch pos"]]


@dataclass(frozen=True)
class Store:
    """Activations [sample, d] on disk, in shards of equal length, at float16. `harvest` makes one."""

    folder: Path
    shards: int

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [np.load(_shard(self.folder, i), mmap_mode="r") for i in range(self.shards)]

    def __len__(self) -> int:
        return self.shards * len(self._maps[0])

    @property
    def d(self) -> int:
        return self._maps[0].shape[1]

    @cached_property
    def mean(self) -> Float[Tensor, "d"]:
        """The mean of the first shard."""
        return torch.from_numpy(self._maps[0].astype(np.float32)).mean(dim=0)

    @cached_property
    def scale(self) -> float:
        """What makes the mean squared distance from the mean equal to d, in the first shard.

        With it, learning rates and penalties mean the same at every site of every model. (Conerly et al. 2024.)
        Raises ValueError if there is no variance.
        """
        x = torch.from_numpy(self._maps[0].astype(np.float32))
        variance = (x - self.mean).square().sum(dim=1).mean()
        if variance == 0:
            raise ValueError(f"all activations in {_shard(self.folder, 0)} are alike: there is nothing to take apart")
        return (self.d / variance).sqrt().item()

    def batch(self, step: int, size: int, seed: int = 0) -> Float[Tensor, "batch d"]:
        """Samples drawn at random from all shards, with replacement; the same ones for the same step and seed."""
        chosen = np.random.default_rng([seed, step]).integers(len(self), size=size)
        shard, row = np.divmod(chosen, len(self._maps[0]))
        x = np.empty((size, self.d), dtype=np.float16)
        for i in np.unique(shard):
            x[shard == i] = self._maps[i][row[shard == i]]
        return torch.from_numpy(x).float()


def _shard(folder: Path, i: int) -> Path:
    return folder / f"{i:05d}.npy"


def fingerprint(model: Transformer) -> str:
    """Tells one model from another, by its configuration and its weights."""
    digest = hashlib.sha256(repr(model.cfg).encode())
    for name, x in sorted(model.state_dict().items()):
        digest.update(name.encode() + x.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def harvest(
    model: Transformer,
    site: str,
    rows: Rows,
    folder: str | Path,
    *,
    shards: int,
    source: str,
    skip: int = 1,
    on_step: Callable[[int], None] | None = None,
) -> Store:
    """Runs the model on `rows(i)` for each shard i, and keeps what `site` says at each position but the first `skip`.

    (The first token of a row is the same everywhere, and its activation unlike all others.) Shards that are there
    already are not made again; with torch.distributed, each process makes its share. `source` says what the rows are.

    Raises:
        ValueError: no such site, or one that has not one vector for each token; hooks attached to the model; a `skip`
            that leaves nothing; a folder that holds another harvest; a shard with another number of tokens than the
            first, or with values that float16 cannot hold.
    """
    folder = Path(folder)
    select(model, site)
    if model.attached:
        raise ValueError("hooks are attached to the model: what they change would be harvested")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    tokens = rows(0)
    if not 0 <= skip < tokens.shape[1]:
        raise ValueError(f"rows have {tokens.shape[1]} tokens, so skip must be from 0 to one less: got {skip}")
    length = tokens.shape[0] * (tokens.shape[1] - skip)
    about = {"model": fingerprint(model), "site": site, "source": source, "skip": skip, "samples": length}
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ABOUT).exists() and (found := json.loads((folder / ABOUT).read_text("utf-8"))) != about:
        differ = ", ".join(f"{key}: {found.get(key)!r}" for key in about if found.get(key) != about[key])
        raise ValueError(f"{folder} holds another harvest ({differ}): choose another folder, or delete it")
    for i in range(rank, shards, world):
        if not _shard(folder, i).exists():
            _, cache = run_with_cache(model, rows(i), site, stop_at_layer=_after(model, site))
            if cache[site].ndim != 3:
                raise ValueError(f"{site} is {list(cache[site].shape)}: harvest at a site of shape [batch, pos, d]")
            x = cache[site][:, skip:].flatten(0, 1)
            if len(x) != length:
                raise ValueError(f"shard {i} has {len(x)} tokens, but the first has {length}: give all the same number")
            if not (x := x.half()).isfinite().all():
                raise ValueError(f"{site} has values that float16 cannot hold: harvest elsewhere")
            if rank == 0:  # the first shard is its own: a harvest that fails at once leaves nothing behind
                _write(folder / ABOUT, lambda path: path.write_text(json.dumps(about, indent=1), "utf-8"))
            _write(_shard(folder, i), partial(np.save, arr=x.numpy()))
        if on_step is not None:
            on_step(i)
    if world > 1:
        dist.barrier()
    return Store(folder, shards)


def _after(model: Transformer, site: str) -> int | None:
    """Where the model can stop: no later layer is needed for this site."""
    return HookPoint(site).layer() + 1 if site.startswith("blocks.") else None


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """A file is there whole, or not at all."""
    half_written = path.with_name(f"new-{path.name}")
    write(half_written)
    half_written.replace(path)


def train_sae(
    store: Store,
    d_sae: int,
    *,
    steps: int,
    k: int | None = None,
    jump: float | None = None,
    sparsity: float = 0.0,
    batch: int = 2048,
    lr: float = 1e-3,
    resample_every: int | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> SAE:
    """An SAE of what a store holds: trained on normalised samples, and returned for samples as they are.

    `sparsity` and `jump` are in units of normalised samples (`Store.scale`). Which kind it is, `SAE` tells. The start
    and the order of samples follow from the seed.

    Raises ValueError unless there is exactly one of `k`, and a `sparsity` above zero.
    """
    if sparsity < 0 or (k is None) == (sparsity == 0):
        raise ValueError("give k (TopK), or a sparsity above zero (ReLU, and with jump JumpReLU), not both")
    sae = SAE.random(store.d, d_sae, torch.Generator().manual_seed(seed), k=k, jump=jump)
    sae.b_dec.copy_(store.mean * store.scale)
    train(
        sae,
        lambda step: store.batch(step, batch, seed) * store.scale,
        steps=steps,
        sparsity=sparsity,
        lr=lr,
        resample_every=resample_every,
        seed=seed,
        on_step=on_step,
    )
    return sae.rescaled(store.scale)
