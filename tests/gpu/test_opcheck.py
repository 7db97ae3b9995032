"""What torch asks of an op that it has not made itself, on a GPU: schema, shape function, tracing."""

import pytest
import torch
from torch.library import opcheck

from esl_sparse import _backends
from esl_sparse.ops._library import raw
from esl_sparse.ops.norm_lif import norm_lif_op

from .. import oracle
from ..ops import conv2d_cases, linear_cases
from ..ops.norm_lif_cases import Case, problem
from ..ops.test_norm_lif import on_device
from ..ops.test_pack import random_levels
from ..ops.test_pool import WINDOW

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(params=["triton", "cuda"], autouse=True)
def backend(request, untuned):
    with _backends.use(request.param):
        yield request.param


def test_linear():
    p = linear_cases.Problem(linear_cases.CASES["16x16-two-steps"], "binary", "float32", DEVICE)
    values = p.values.detach().masked_fill(~p.topology.valid(), 0.0)  # NaN is not NaN
    bias, index, words = p.bias.detach(), p.topology.index_tensors(), p.packed().words
    for x, T, B, panels in ((p.x.detach(), 1, len(p.x), False), (words, p.case.T, p.case.B, False)):
        call = (p.case.rows, p.case.cols, T, B, p.planes, p.scale, panels)
        opcheck(raw.linear.default, (x, values, bias, *index, *call))
        y, saved = raw.linear(x, values, bias, *index, *call)
        saved = x if x is words else saved
        opcheck(
            raw.linear_backward.default,
            (torch.randn_like(y), saved, values, *index, *call, x is words, 7),
        )


def test_conv2d():
    p = conv2d_cases.Problem(conv2d_cases.CASES["16x16"], "binary", "float32", DEVICE)
    values, index = p.values.detach().nan_to_num(0.0, 0.0, 0.0), p.topology.index_tensors()
    lay, words = p.topology.layout, p.packed().words
    call = (list(p.geometry), lay.rows, lay.cols, p.case.T, p.case.B, p.planes, p.scale)
    # Padding lanes of the result are undefined: two runs would not agree on NaN.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(raw.conv2d.default, (words, values, p.bias.detach(), *index, *call, True), test_utils=checks)
    opcheck(
        raw.conv2d_backward.default, (p.panels(p.grad), words, values, *index, *call, 7), test_utils=checks
    )


def test_lif():
    x, v, tau = (
        torch.randn(3, 20, device=DEVICE),
        torch.randn(20, device=DEVICE),
        torch.tensor(0.5, device=DEVICE),
    )
    opcheck(raw.lif.default, (x, v, tau, 1.0, 0.0, True))
    grad = torch.randn_like(x)
    opcheck(raw.lif_backward.default, (grad, v, x, v, tau, 1.0, None, "atan", 1.0, False, True, True))


def test_norm_lif():
    p = problem(Case(2, 5, 2, 2, 3, norm2="eval", planes=1))
    forward = on_device(p.forward_arguments(), DEVICE)
    words = norm_lif_op(*forward)
    opcheck(raw.norm_lif.default, tuple(forward))
    opcheck(raw.norm_lif_backward_.default, tuple(on_device(p.backward_arguments(words.cpu()), DEVICE)))
    opcheck(raw.panel_stats.default, (forward.current, 2, 5))


def test_pack():
    x = torch.tensor(random_levels((3, 12, 17, 3, 7), 2), dtype=torch.float32, device=DEVICE)
    words, panels = raw.pack(x, 2, 1.0), raw.to_panels(x)
    opcheck(raw.pack.default, (x, 2, 1.0))
    opcheck(raw.unpack.default, (words, 3, 12, 1.0, torch.float32))
    opcheck(raw.to_panels.default, (x,))
    opcheck(raw.from_panels.default, (panels, 3, 12))


def test_pool():
    T, B, C, H, W = 2, 9, 3, 4, 6
    words = torch.from_numpy(oracle.pack(random_levels((T, B, C, H, W), 1), 1)).to(DEVICE)
    grad = torch.randn(words.shape[1], 2, 3, C, 64, device=DEVICE)
    opcheck(raw.avg_pool.default, (words, 4, *WINDOW))
    opcheck(raw.avg_pool_backward.default, (grad, [H, W], 9, *WINDOW))
    opcheck(raw.max_pool.default, (words, *WINDOW))
    opcheck(raw.max_pool_backward.default, (grad, words, *WINDOW))
    opcheck(raw.global_avg_pool.default, (words, T, B, 1.0, torch.float32))


def test_select():
    score, ids = torch.randn(50, device=DEVICE), torch.arange(50, device=DEVICE)
    for count in (0, 7):
        opcheck(raw.select.default, (score, ids, count, 3, True))
