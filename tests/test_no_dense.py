"""Nothing of dense size, not even a bitmap of the weight, is allocated from construction to Adam's step."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import esl_sparse as esl
from esl_sparse import _native

pytestmark = pytest.mark.skipif(not _native.available(), reason="the references build the dense weight")

LANES = (4, 16)  # 64
# Weight, its input beside the lanes, and entries of the dense weight. Activations take 2 MB beside dense weights of
# 268 MB and, with the border as levels, 151 MB.
LAYERS = {
    "linear": (partial(esl.nn.SparseLinear, 8192, 8192), (8192,), 8192**2),
    "conv2d": (partial(esl.nn.SparseConv2d, 2048, 2048, 3, padding=1), (2048, 2, 2), 9 * 2048**2),
}


class LargestAllocation(TorchDispatchMode):
    """Keeps the largest storage that any op returns; looks inside our own ops too."""

    def __init__(self):
        super().__init__()
        self.bytes, self.op = 0, ""
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.namespace)
        if func.namespace == "esl_sparse":
            with self:  # straight to the kernel, whose own allocations then come back here
                result = func.redispatch(
                    torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {})
                )
        else:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided and not leaf.is_meta:
                nbytes = leaf.untyped_storage().nbytes()
                if nbytes > self.bytes:
                    self.bytes, self.op = nbytes, str(func)
        return result


def train(make, size, block_size, grow):
    layer = make(density=0.005, block_size=block_size)
    model = torch.nn.Sequential(layer, esl.nn.LIF())
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = esl.Rewirer(model, optimizer, grow=grow, interval=2, t_end=8)
    x = torch.bernoulli(torch.full((*LANES, *size), 0.1)).requires_grad_()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
        report = rewirer.step()
    assert report.layers[0].pruned > 0 and report.layers[0].note == ""


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("grow", ["random", "gradient", "momentum", "momentum_neuron"])
@pytest.mark.parametrize("name", LAYERS)
def test_training_never_allocates_dense_size(name, block_size, grow, threads):
    """Updates included; what has ever been active is no more than a bitmap, and here a list of ids."""
    threads(1)
    esl.arena.release()  # or a large buffer of another test serves unseen
    make, size, weights = LAYERS[name]
    with LargestAllocation() as largest:
        train(make, size, block_size, grow)
    assert "esl_sparse" in largest.seen
    bitmap = weights // 8
    assert 0 < largest.bytes < bitmap, (
        f"{largest.op} allocated {largest.bytes} bytes; a bitmap takes {bitmap}"
    )


@pytest.mark.parametrize("layer", [esl.nn.SparseLinear(64, 64), esl.nn.SparseConv2d(16, 16, 2)], ids=str)
def test_the_recorder_sees_what_our_ops_allocate(layer):
    """Otherwise the test above would pass whatever the kernels do."""
    esl.arena.release()
    size = (16, 2, 2) if isinstance(layer, esl.nn.SparseConv2d) else (64,)
    x = torch.bernoulli(torch.full((4, *size), 0.1))
    with esl._backends.use("reference"), LargestAllocation() as largest:
        layer(x)
    dense = layer.to_dense().weight
    assert largest.bytes >= dense.nbytes
