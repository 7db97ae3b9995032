import numpy as np
import pytest
import torch

from esl_sparse import _backends
from esl_sparse.ops._library import raw
from esl_sparse.ops.pack import pack_tensor

from .. import oracle
from ..ops.test_pack import SHAPES, random_levels, squeezed
from .cases import assert_streams_and_graphs_change_nothing, captured

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda():
    with _backends.use("cuda"):
        yield


@pytest.mark.parametrize("planes,scale", [(1, 1.0), (3, 0.25)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_oracle(shape, dtype, planes, scale):
    levels = random_levels(shape, planes)
    x = squeezed(torch.tensor(levels * scale, dtype=dtype, device="cuda"), shape)
    words = pack_tensor(x, planes, scale).words
    np.testing.assert_array_equal(words.cpu(), oracle.pack(levels, planes))
    assert torch.equal(raw.unpack(words, *shape[:2], scale, dtype), x)
    panels = raw.to_panels(x)
    np.testing.assert_array_equal(panels.float().cpu(), oracle.to_panels(levels * scale))
    assert torch.equal(raw.from_panels(panels, *shape[:2]), x)


@pytest.mark.parametrize("bad", [0.25, 2.0, -1.0, torch.nan, torch.inf])
def test_a_broken_promise_raises(bad):
    x = torch.zeros(3, 9, 12, device="cuda")
    x[1, 2, 3] = bad
    with pytest.raises(ValueError, match="input: expected binary"):
        pack_tensor(x, 1, 1.0)


def test_streams_and_graphs():
    x = torch.tensor(random_levels((3, 40, 17, 7, 3), 2), dtype=torch.float32, device="cuda")

    def everything():
        words, panels = raw.pack(x, 2, 1.0), raw.to_panels(x)
        return words, panels, raw.unpack(words, 3, 40, 1.0, x.dtype), raw.from_panels(panels, 3, 40)

    with _backends.use("cuda"):
        assert_streams_and_graphs_change_nothing(everything)


def test_a_captured_graph_packs_what_comes_later():
    x = torch.zeros(2, 40, 70, device="cuda")
    (words,) = captured(lambda: [raw.pack(x, 1, 1.0)])
    assert not words.any()
    x.bernoulli_(0.5)
    (words,) = captured(lambda: [raw.pack(x, 1, 1.0)])
    assert torch.equal(words, raw.pack(x, 1, 1.0))
