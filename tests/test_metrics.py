"""The numbers that runs are judged by, against numbers by hand."""

import pytest
import torch

from interp_edu.metrics import Metric, kl_divergence, logit_difference, probability


def test_metrics_by_hand():
    logits = torch.tensor([[[0.0, 1, 2], [3, 0, 0]], [[0, 0, 0], [1, 5, 0]]])  # batch pos d_vocab
    assert logit_difference(0, 1)(logits).item() == (3 - 4) / 2
    assert logit_difference([2, 1], [0, 0], [0, 1])(logits).item() == (2 + 4) / 2
    e = torch.e
    expected = (e**3 / (e**3 + 2) + e / (e + e**5 + 1)) / 2
    assert probability(0)(logits).item() == pytest.approx(expected)
    assert probability([0, 1], [1, 0])(logits).item() == pytest.approx((e**3 / (e**3 + 2) + 1 / 3) / 2)
    p, q = logits[:, -1].softmax(-1), logits[:, 0].softmax(-1)
    divergence = (p * (p / q).log()).sum(dim=-1).mean().item()
    assert kl_divergence(logits)(logits.flip(1)).item() == pytest.approx(divergence)
    assert kl_divergence(logits)(logits).item() == pytest.approx(0, abs=1e-7)
    entropy = Metric(lambda x: -(x.softmax(-1) * x.log_softmax(-1)).sum(-1), position=0)
    assert entropy(torch.zeros(2, 2, 3)).item() == pytest.approx(torch.tensor(3.0).log().item())


def test_a_metric_reads_where_it_was_told():
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    each = logit_difference([1, 2, 3], [4, 5, 6], [0, 2, -1])
    at = [logits[0, 0, 1] - logits[0, 0, 4], logits[1, 2, 2] - logits[1, 2, 5], logits[2, 4, 3] - logits[2, 4, 6]]
    assert each(logits).item() == pytest.approx(sum(at).item() / 3, abs=1e-6)
    assert each.read(logits).tolist() == logits[[0, 1, 2], [0, 2, 4]].tolist()


def test_numbers_that_do_not_fit_the_rows():
    with pytest.raises(ValueError, match="3 rows, but the metric has numbers for \\[2\\]"):
        Metric(lambda logits: logits[:, :2, 0])(torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match="no position 4: they go from 0 to 3"):
        probability(0, 4)(torch.zeros(3, 4, 5))
