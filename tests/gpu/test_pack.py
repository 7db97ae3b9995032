import math

import numpy as np
import pytest
import torch

from esl_sparse._backends import choose
from esl_sparse.functional import unpack
from esl_sparse.ops._library import raw
from esl_sparse.ops.pack import pack_tensor

from .. import oracle
from ..ops.test_pack import SHAPES, random_levels, squeezed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("planes,scale", [(1, 1.0), (3, 0.25), (4, 2.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_words_panels_and_back(shape, planes, scale, dtype):
    levels = random_levels(shape, planes)
    x = squeezed(torch.tensor(levels * scale, dtype=dtype, device="cuda"), shape)
    spikes = pack_tensor(x, planes, scale)
    np.testing.assert_array_equal(spikes.words.cpu(), oracle.pack(levels, planes))
    assert torch.equal(unpack(spikes), x)
    panels = raw.to_panels(x)
    np.testing.assert_array_equal(panels.double().cpu(), oracle.to_panels(levels * scale))
    assert torch.equal(raw.from_panels(panels, *shape[:2]), x)


def test_channels_last():
    levels = random_levels((3, 12, 17, 3, 7), 2)
    x = torch.tensor(levels, dtype=torch.float32, device="cuda")
    last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    np.testing.assert_array_equal(pack_tensor(last, 2, 1.0).words.cpu(), oracle.pack(levels, 2))
    assert torch.equal(raw.to_panels(last), raw.to_panels(x))


@pytest.mark.parametrize("bad", [0.25, 2.0, -1.0, math.nan, math.inf, -math.inf, 1e-30, 1 + 2**-7])
@pytest.mark.parametrize("place", [0, 100, 3 * 9 * 12 - 1])
def test_a_broken_promise_raises(bad, place):
    x = torch.zeros(3, 9, 12, device="cuda")
    x.view(-1)[place] = bad
    with pytest.raises(ValueError, match="input: expected"):
        pack_tensor(x, 1, 1.0)


def test_captured_graphs():
    x = torch.tensor(random_levels((4, 32, 100), 1), dtype=torch.float32, device="cuda")
    expected = pack_tensor(x, 1, 1.0).words
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        words = pack_tensor(x, 1, 1.0).words
    graph.replay()
    assert torch.equal(words, expected)


def test_who_computes():
    assert choose("pack", "cuda", torch.bfloat16) == "triton"
    assert choose("pack", "cuda", torch.float64) == "reference"
