"""What a run is judged by: a number for each row, from its logits at one position.

Which number decides what an experiment can see: a difference of two logits is blind to all other words, a probability
to everything once it is near 0 or 1 (Zhang and Nanda 2024, section 4).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Ids = int | Sequence[int] | Int[Tensor, "batch"]


def indices(given: Iterable[int] | None, size: int, what: str) -> list[int]:
    """Indices counted from the start, all of them for None. Raises ValueError for one that is not there."""
    given = range(size) if given is None else list(given)
    for i in given:
        if not -size <= i < size:
            raise ValueError(f"there is no {what} {i}: they go from 0 to {size - 1}")
    return [i % size for i in given]


@dataclass(frozen=True)
class Metric:
    """A number for each row, from its logits at one position; what is reported is the mean over rows.

    `of` maps logits [patch, batch, choice] to numbers [patch, batch]. `position` is where to read, one for all rows or
    one for each; `choices` [batch or 1, choice] are the tokens whose logits it needs, None the whole vocabulary.
    """

    of: Callable[[Float[Tensor, "patch batch choice"]], Float[Tensor, "patch batch"]]
    position: Ids = -1
    choices: Int[Tensor, "rows choice"] | None = None

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        read = self.read(logits)
        values = self.of((read if self.choices is None else read.take_along_dim(self.choices, dim=1))[None])
        if values.shape != (1, len(logits)):
            raise ValueError(f"there are {len(logits)} rows, but the metric has numbers for {list(values.shape)[1:]}")
        return values.mean()

    def read(self, x: Float[Tensor, "batch pos feature"]) -> Float[Tensor, "rows feature"]:
        """What stands where each row is read. Raises ValueError for a position that is not there."""
        at = indices(torch.as_tensor(self.position).reshape(-1).tolist(), x.shape[1], "position")
        return x.take_along_dim(torch.tensor(at)[:, None, None], dim=1)[:, 0]


def logit_difference(right: Ids, wrong: Ids, position: Ids = -1) -> Metric:
    """The logit of the right token minus the wrong one's: linear in the last stream, and blind to all other tokens."""
    pairs = torch.broadcast_tensors(*(torch.as_tensor(ids).reshape(-1) for ids in (right, wrong)))
    return Metric(lambda logits: logits[..., 0] - logits[..., 1], position, torch.stack(pairs, dim=1))


def probability(right: Ids, position: Ids = -1) -> Metric:
    """The probability of the right token. It saturates: of two parts that each suffice, neither is needed."""
    ids = torch.as_tensor(right).reshape(1, -1, 1)
    return Metric(lambda logits: logits.softmax(dim=2).take_along_dim(ids, dim=2)[..., 0], position)


def kl_divergence(reference: Float[Tensor, "batch pos d_vocab"], position: Ids = -1) -> Metric:
    """KL(reference || patched run) in nats, over the whole vocabulary: `kl_divergence(model(clean))`."""
    log_p = Metric(torch.sum, position).read(reference).log_softmax(dim=1)
    return Metric(lambda logits: (log_p.exp() * (log_p - logits.log_softmax(dim=2))).sum(dim=2), position)
