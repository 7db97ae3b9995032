import pytest
import torch

from esl_sparse.ops.norm_lif import panel_stats

from .norm_lif_cases import panel

pytestmark = pytest.mark.usefixtures("poison")


@pytest.mark.parametrize("T,B", [(1, 1), (1, 7), (2, 5), (3, 8), (4, 20), (5, 33), (2, 64)])
@pytest.mark.parametrize("C,H,W", [(1, 1, 1), (3, 2, 3), (70, 5, 7)])
@pytest.mark.parametrize("centre,spread", [(0, 1), (1000, 1), (-1e6, 1), (3, 1e-3)])
def test_panel_stats(backend, T, B, C, H, W, centre, spread):
    x = torch.randn(T, B, C, H, W) * spread + centre
    mean, variance = panel_stats(panel(x, T, B), T, B)
    flat = x.double().transpose(0, 2).flatten(1)
    torch.testing.assert_close(mean, flat.mean(1), rtol=1e-12, atol=3e-7 * spread)
    torch.testing.assert_close(variance, flat.var(1, correction=0), rtol=2e-6, atol=0)


def test_panel_stats_of_an_outlier(backend):
    """One huge value first does not blur the variance of the rest."""
    x = torch.randn(2, 5, 2, 4, 5)
    x[0, 0, 0, 0, 0] = 1e4
    _, variance = panel_stats(panel(x, 2, 5), 2, 5)
    torch.testing.assert_close(
        variance, x.double().transpose(0, 2).flatten(1).var(1, correction=0), rtol=1e-6, atol=0
    )


def test_panel_stats_of_nothing_and_of_nan(backend):
    assert panel_stats(torch.empty(0, 2, 3, 4, 64), 3, 0).isnan().all()
    assert panel_stats(torch.empty(1, 0, 3, 4, 64), 3, 5).isnan().all()
    x = torch.randn(2, 5, 3, 2, 2)
    x[1, 3, 1, 0, 1] = torch.nan
    assert panel_stats(panel(x, 2, 5), 2, 5).isnan().any(0).tolist() == [False, True, False]
