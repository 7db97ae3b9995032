import pytest
import torch
from torch.nn import functional as F

from esl_sparse.nn import TETLoss


@pytest.mark.parametrize("lamb", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("soft", [False, True])
def test_tet(lamb, soft):
    outputs = torch.randn(4, 6, 10, requires_grad=True)
    target = torch.randn(6, 10).softmax(1) if soft else torch.randint(10, (6,))
    loss = TETLoss(lamb, means=0.5)(outputs, target)
    per_step = torch.stack([F.cross_entropy(o, target) for o in outputs]).mean()
    expected = (1 - lamb) * per_step + lamb * F.mse_loss(outputs, torch.full_like(outputs, 0.5))
    torch.testing.assert_close(loss, expected)
    (actual,), (exact,) = (
        torch.autograd.grad(value, outputs, retain_graph=True) for value in (loss, expected)
    )
    torch.testing.assert_close(actual, exact)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"lamb: expected a number from 0 to 1, got 1\.5"):
        TETLoss(1.5)
    with pytest.raises(ValueError, match=r"outputs: expected \[T, N, classes\], got shape \(6, 10\)"):
        TETLoss()(torch.zeros(6, 10), torch.zeros(6).long())
    with pytest.raises(ValueError, match=r"target: expected 6 entries, got shape \(4,\)"):
        TETLoss()(torch.zeros(4, 6, 10), torch.zeros(4).long())
    assert repr(TETLoss(0.1)) == "TETLoss(lamb=0.1, means=1.0)"
