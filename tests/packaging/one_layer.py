"""One layer forward and backward. `one_layer.py native` or `pure` also says what must have computed it."""

import sys

import torch

import esl_sparse as esl
from esl_sparse import _native

layer = esl.nn.SparseLinear(50, 30, density=0.5)
x = (torch.rand(9, 50) < 0.3).float()
y = layer(x)
torch.testing.assert_close(y, layer.to_dense()(x))
y.sum().backward()
assert layer.values.grad.any()
backend = "native" if _native.available() else "pure"
assert backend in sys.argv[1:] or len(sys.argv) == 1, _native.reason() or "there are native kernels"
print(esl.__file__, backend)
