import copy
import dataclasses
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from esl_sparse import PackedSpikes, functional, nn
from esl_sparse.functional import pack
from esl_sparse.packed import Lanes

from . import oracle


@pytest.mark.parametrize("T", [0, 1, 4, 5])
@pytest.mark.parametrize("B", [0, 1, 8, 9, 16, 64, 65, 200])
def test_lanes(T, B):
    lanes = Lanes(T, B)
    assert lanes.padded % 8 == 0
    assert B <= lanes.padded < B + 8
    assert (lanes.total, lanes.groups) == (oracle.lane_count(T, B), oracle.groups(T, B))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 4, 6)])
def test_shape_and_dtype(shape):
    spikes = pack(torch.ones(shape, dtype=torch.bfloat16))
    assert spikes.shape == shape
    assert spikes.dtype == torch.bfloat16
    assert spikes.planes == 1
    assert spikes.lanes == Lanes(2, 3)
    assert spikes.carrier.shape == (*spikes.words.shape[1:], 64)


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        copy.copy,
        lambda s: pickle.loads(pickle.dumps(s)),
        lambda s: pytree.tree_map(torch.clone, s),
    ],
)
def test_copies(duplicate):
    spikes = pack(torch.tensor([[[0.0, 0.5, 1.5]]]))
    other = duplicate(spikes)
    assert isinstance(other, PackedSpikes)
    assert (other.T, other.B, other.scale) == (1, 1, 0.5)
    assert torch.equal(other.words, spikes.words)


def test_a_pytree_of_two_tensors():
    spikes = pack(torch.ones(2, 3, 5))
    leaves, spec = pytree.tree_flatten({"a": spikes})
    assert [leaf is tensor for leaf, tensor in zip(leaves, (spikes.carrier, spikes.words), strict=True)] == [
        True,
        True,
    ]
    assert pytree.tree_unflatten(leaves, spec)["a"] == spikes


def _mean(spikes):
    return functional.adaptive_avg_pool2d(spikes, 1)


def _layer(spikes):
    return nn.SparseLinear(5, 4, density=0.5)(spikes)


@pytest.mark.parametrize("use", [functional.unpack, _mean, _layer])
@pytest.mark.parametrize(
    "field, value, message",
    [
        ("words", lambda x: x[:0], "1 to 4 planes and 1 groups"),
        ("words", lambda x: x.expand(5, -1, -1, -1, -1), "1 to 4 planes and 1 groups"),
        ("words", lambda x: x[:, :0], "1 to 4 planes and 1 groups"),
        ("words", lambda x: x.int(), "int64 words of 5 dims"),
        ("words", lambda x: x[0], "int64 words of 5 dims"),
        ("words", lambda x: None, "two tensors, words and carrier, got NoneType and Tensor"),
        ("carrier", lambda x: None, "two tensors, words and carrier, got Tensor and NoneType"),
        ("carrier", lambda x: x[..., :8], r"a carrier \(1, 1, 1, 5, 64\), got \(1, 1, 1, 5, 8\)"),
        ("T", lambda x: 100, "and 13 groups of lanes"),
        ("B", lambda x: -3, "T and B of at least 0, got 2 and -3"),
        ("B", lambda x: 3.0, "T and B of at least 0, got 2 and 3.0"),
        ("scale", lambda x: "1", "a number as scale, got str"),
    ],
)
def test_fields_that_do_not_fit_never_reach_a_kernel(use, field, value, message):
    spikes = pack(torch.ones(2, 3, 5))
    wrong = dataclasses.replace(spikes, **{field: value(getattr(spikes, field))})
    with pytest.raises((TypeError, ValueError), match=message):
        use(wrong)
