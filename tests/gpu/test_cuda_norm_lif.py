import itertools

import pytest
import torch

from esl_sparse import _backends
from esl_sparse.ops.norm_lif import GRADIENTS, cuda, norm_lif_op, panel_stats

from .. import oracle
from ..ops.norm_lif_cases import Case, backward, panel, problem, rows
from ..ops.test_norm_lif import SHAPES
from .cases import assert_streams_and_graphs_change_nothing

pytestmark = pytest.mark.gpu

MORE = [
    *(
        Case(3, 5, 3, 2, 2, norm=norm, norm2=norm2, planes=planes)
        for norm, norm2, planes in itertools.product(("train", "eval", "none"), ("", "train", "none"), (0, 3))
    ),
    *(Case(2, 12, 3, H, W, pool=pool) for pool, H, W in ((2, 5, 4), (3, 7, 3))),
    *(
        Case(4, 9, 3, v_reset=v_reset, surrogate=surrogate)
        for v_reset in (0.25, None)
        for surrogate in oracle.SURROGATES
    ),
]


def on_gpu(call):
    return call._replace(**{k: v.cuda() for k, v in call._asdict().items() if isinstance(v, torch.Tensor)})


@pytest.mark.parametrize("case", [*SHAPES, *MORE], ids=str)
def test_cuda_kernels_agree_with_autograd(case):
    p = problem(case)
    with _backends.use("cuda"):
        words = norm_lif_op(*on_gpu(p.forward_arguments())).cpu()
        found = backward(on_gpu(p.backward_arguments(words)))
    assert torch.equal(words, torch.from_numpy(oracle.pack(p.spikes.detach().numpy().astype(int), 1)))
    padding = torch.from_numpy(oracle.padding_lanes(case.T, case.B))
    for name, actual in zip(GRADIENTS, found, strict=True):
        if name not in p.grads:
            continue
        actual, expected = actual.cpu(), p.grads[name]
        if actual.dim() == 5:
            assert (actual.movedim(4, 1)[padding] == 0).all(), name
            actual = rows(actual, case.T, case.B)
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=2e-5 * max(scale, 1), msg=name)


@pytest.mark.parametrize("centre,spread", [(0, 1), (1000, 1), (-1e6, 1), (3, 1e-3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_panel_stats(dtype, centre, spread):
    x = (torch.randn(4, 20, 70, 5, 7) * spread + centre).to(dtype)
    flat = x.double().transpose(0, 2).flatten(1)
    mean, variance = cuda.panel_stats(panel(x.float(), 4, 20).to(dtype).cuda(), 4, 20).cpu()
    torch.testing.assert_close(mean, flat.mean(1), rtol=1e-12, atol=3e-7 * spread)
    torch.testing.assert_close(variance, flat.var(1, correction=0), rtol=2e-6, atol=1e-30)


def test_streams_and_graphs():
    p = problem(Case(3, 12, 17, 2, 3, norm2="train", planes=2))
    call = on_gpu(p.forward_arguments())

    def forward():
        return norm_lif_op(*call), panel_stats(call.current, 3, 12)

    with _backends.use("cuda"):
        back = on_gpu(p.backward_arguments(norm_lif_op(*call).cpu()))
        assert_streams_and_graphs_change_nothing(forward)
        assert_streams_and_graphs_change_nothing(lambda: [g for g in backward(back) if g.numel()])
