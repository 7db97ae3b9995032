import copy
import io
import itertools
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse import _backends
from esl_sparse.nn import SparseLinear
from esl_sparse.topology import transpose_index

from .. import oracle


def spikes(*shape, rate=0.3):
    return (torch.rand(shape) < rate).float()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weight_of(layer):
    """The dense weight by the oracle, float64."""
    ids = layer.topology.block_ids().numpy()
    shape = (layer.out_features, layer.in_features)
    return torch.from_numpy(oracle.dense(layer.values.detach().double().numpy(), ids, shape))


def assert_index_consistent(layer):
    derived = transpose_index(layer.crow_indices, layer.col_indices, layer.topology.layout.col_blocks)
    for own, fresh in zip(list(layer.topology.index_tensors())[2:], derived, strict=True):
        assert torch.equal(own, fresh)
        assert own.dtype == torch.int32


# Construction


@pytest.mark.parametrize("density", [0.0, 0.1, 0.333, 1.0])
@pytest.mark.parametrize("block_size", ["auto", 1, (2, 8), (16, 4), 128])
@pytest.mark.parametrize("bias", [True, False])
def test_construction(density, block_size, bias):
    layer = SparseLinear(50, 30, bias, density=density, block_size=block_size, generator=generator())
    lay = layer.topology.layout
    assert layer.topology.nnzb == round(density * lay.blocks)
    assert layer.values.shape == (layer.topology.nnzb, *layer.block_size)
    assert not layer.values[~layer.topology.valid()].any()
    assert [name for name, _ in layer.named_parameters()] == ["values", "bias"][: 1 + bias]
    assert layer.density == pytest.approx(layer.nnz / 1500)
    assert set(layer.state_dict()) == {"values", "crow_indices", "col_indices", *["bias"][:bias]}
    assert_index_consistent(layer)


def test_the_generator_decides_everything():
    first, again, other = (
        SparseLinear(64, 64, generator=generator(seed)).state_dict().values() for seed in (1, 1, 2)
    )
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert a.shape != c.shape or not torch.equal(a, c)


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"in_features": 0}, ValueError, "in_features: expected at least 1, got 0"),
        ({"out_features": 2.0}, TypeError, "out_features: expected an int, got float"),
        ({"density": 1.1}, ValueError, "density: expected a fraction from 0 to 1, got 1.1"),
        ({"density": float("nan")}, ValueError, "density: expected a fraction"),
        ({"block_size": 3}, ValueError, "block_size: expected powers of two"),
        ({"input": "spikes"}, ValueError, "input: expected one of .*got 'spikes'"),
    ],
)
def test_wrong_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        SparseLinear(**{"in_features": 8, "out_features": 8, **arguments})


def test_initial_values_follow_the_sparse_fan_in():
    layer = SparseLinear(1000, 400, density=0.1, generator=generator())
    values, bias = layer.values.detach(), layer.bias.detach()
    bound = 0.1  # 1 / sqrt(1000 * 0.1)
    assert values.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert bias.abs().max().item() == pytest.approx(bound, rel=0.02)
    layer.reset_parameters("kaiming_normal", generator=generator())
    assert values.std().item() == pytest.approx(0.02**0.5, rel=0.02)
    assert not bias.any()
    layer.reset_parameters(lambda values, fan_in: values.fill_(fan_in))
    assert values.unique().item() == pytest.approx(100, rel=0.01)
    with pytest.raises(ValueError, match=r"init: expected .*'xavier'"):
        layer.reset_parameters("xavier")


def test_there_is_no_dense_weight():
    layer = SparseLinear(8, 8, density=0.5)
    with pytest.raises(AttributeError, match=r"no dense weight: .*\.values.*\.to_dense\(\)"):
        _ = layer.weight
    with pytest.raises(AttributeError, match="has no attribute 'wait'"):
        _ = layer.wait
    assert not isinstance(layer, nn.Linear)
    assert "in_features=8, out_features=8, bias=True, density=0.5" in repr(layer)


# Forward and backward


SHAPES = [(7,), (5, 7), (3, 5, 7), (2, 3, 5, 7), (0, 7), (3, 0, 7)]


@pytest.mark.parametrize(
    "source,shape",
    [*itertools.product(["spikes", "floats"], SHAPES), ("packed", (3, 5, 7)), ("packed", (3, 0, 7))],
)
def test_is_the_linear_map_of_its_dense_weight(backend, shape, source):
    layer = SparseLinear(7, 9, density=0.5, block_size=(4, 2), generator=generator())
    x = (torch.randn(shape) if source == "floats" else spikes(*shape)).requires_grad_()
    y = layer(esl.functional.pack(x) if source == "packed" else x)
    g = torch.randn(*shape[:-1], 9)
    grads = torch.autograd.grad(y, (x, layer.values, layer.bias), g)
    exact_inputs = [t.detach().double().requires_grad_() for t in (x, weight_of(layer), layer.bias)]
    expected = nn.functional.linear(*exact_inputs)
    torch.testing.assert_close(y, expected.float())
    exact = list(torch.autograd.grad(expected, exact_inputs, g.double()))
    ids = layer.topology.block_ids().numpy()
    exact[1] = torch.from_numpy(oracle.blocks(exact[1].numpy(), ids, layer.block_size))
    for a, e in zip(grads, exact, strict=True):
        torch.testing.assert_close(a, e.float())


@pytest.mark.parametrize(
    "input,x,kind",
    [
        ("auto", [0, 1], (1, 1.0)),
        ("auto", [0, 0.25, 1], (3, 0.25)),
        ("auto", [0.1, 1], (0, 1.0)),
        ("auto", [float("nan"), 1], (0, 1.0)),
        ("binary", [0, 1], (1, 1.0)),
        ("levels", [0, 2], (1, 2.0)),
        ("levels", [0, 3], (2, 1.0)),
        ("float", [0, 1], (0, 1.0)),
    ],
)
def test_what_the_input_is_taken_for(backend, input, x, kind):
    x = torch.tensor([x], dtype=torch.float32)
    layer = SparseLinear(x.shape[1], 3, density=1.0, input=input)
    for _ in range(2):
        y = layer(x)
        assert layer._kind == kind
        torch.testing.assert_close(y, layer.to_dense()(x), equal_nan=True)


def test_auto_follows_a_changing_input(backend):
    layer = SparseLinear(2, 3, density=1.0)
    for x, kind in [
        ([0.0, 0.5], (1, 0.5)),
        ([0.0, 1.0], (1, 1.0)),
        ([0.1, 0.0], (0, 1.0)),
        ([1.0, 3.0], (2, 1.0)),
    ]:
        torch.testing.assert_close(layer(torch.tensor([x])), layer.to_dense()(torch.tensor([x])))
        assert layer._kind == kind


@pytest.mark.parametrize("input", ["binary", "levels"])
def test_never_a_silent_threshold(backend, input):
    layer = SparseLinear(4, 3, input=input)
    with pytest.raises(ValueError, match=r"expected .* got other values"):
        layer(torch.tensor([[0.0, 1.0, 0.3, 1.0]]))


@pytest.mark.parametrize(
    "x,error,message",
    [
        (torch.zeros(2, 7), ValueError, r"x: expected shape \[..., 8\], got \(2, 7\)"),
        (torch.tensor(0.0), ValueError, r"x: expected shape \[..., 8\], got \(\)"),
        (torch.zeros(2, 8, dtype=torch.float64), TypeError, "x: expected torch.float32 .*got torch.float64"),
        (torch.zeros(2, 8, dtype=torch.int64), TypeError, "x: expected torch.float32 .*got torch.int64"),
        (torch.zeros(2, 8, dtype=torch.bool), TypeError, "x: expected torch.float32 .*got torch.bool"),
        (torch.zeros(2, 8, device="meta"), ValueError, "values: expected on .* meta, got cpu"),
        ([0.0] * 8, TypeError, "x: expected a tensor or PackedSpikes, got list"),
        (
            esl.functional.pack(torch.zeros(1, 2, 7)),
            ValueError,
            r"expected PackedSpikes of shape \(T, B, 8\)",
        ),
    ],
)
def test_a_wrong_input(x, error, message):
    with pytest.raises(error, match=message):
        SparseLinear(8, 3)(x)


@pytest.mark.parametrize("input", ["auto", "float"])
def test_autocast(backend, input):
    layer = SparseLinear(40, 30, density=0.5, input=input, generator=generator())
    dense = layer.to_dense()
    x = spikes(20, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == dense(x).dtype == torch.bfloat16
        y.float().pow(2).sum().backward()
    assert layer.values.grad.dtype == layer.bias.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), dense(x), rtol=2**-7, atol=1e-2)


def test_a_step_of_any_optimiser_and_clipping():
    layer = SparseLinear(20, 10, density=0.5, generator=generator())
    optimizer = torch.optim.AdamW(layer.parameters(), 0.01)
    before = layer.values.detach().clone()
    layer(spikes(8, 20)).square().sum().backward()
    assert nn.utils.clip_grad_norm_(layer.parameters(), 1.0) > 0
    optimizer.step()
    assert not torch.equal(layer.values, before)
    assert not layer.values[~layer.topology.valid()].any()


def test_torch_func(backend):
    layer = SparseLinear(20, 10, density=0.5, generator=generator())
    x, g = spikes(8, 20), torch.randn(8, 10)
    parameters = {k: v.detach() for k, v in layer.named_parameters()}
    grads = torch.func.grad(lambda p: (torch.func.functional_call(layer, p, (x,)) * g).sum())(parameters)
    layer(x).backward(g)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


# Being a module


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(_saved(m), weights_only=False),
    ],
)
def test_copies_share_nothing(duplicate):
    layer = SparseLinear(20, 10, density=0.5, generator=generator())
    other = duplicate(layer)
    x = spikes(4, 20)
    assert torch.equal(layer(x), other(x))
    other.topology.assign_(torch.arange(other.topology.nnzb))
    other.values.data.zero_()
    assert layer.values.any()
    assert not torch.equal(layer.col_indices, other.col_indices)
    assert_index_consistent(layer)


def _saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


def test_state_dict_through_a_file():
    layer = SparseLinear(20, 13, density=0.5, generator=generator(1))
    other = SparseLinear(20, 13, density=0.5, generator=generator(2))
    parameter = other.values
    other.load_state_dict(torch.load(_saved(layer.state_dict()), weights_only=True), strict=True)
    assert other.values is parameter
    assert_index_consistent(other)
    assert torch.equal(weight_of(other), weight_of(layer))
    assert torch.equal(other(spikes(4, 20)).isnan().any(), torch.tensor(False))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
def test_state_dict_of_another_density(assign, wide):
    source = SparseLinear(20, 13, density=0.7, generator=generator(1))
    state = {k: v.long() if wide and "indices" in k else v for k, v in source.state_dict().items()}
    model = nn.Sequential(SparseLinear(20, 13, density=0.2, generator=generator(2)))
    parameter = model[0].values
    model.load_state_dict({f"0.{k}": v for k, v in state.items()}, assign=assign)
    assert assign or model[0].values is parameter
    assert model[0].crow_indices.dtype == model[0].col_indices.dtype == torch.int32
    assert_index_consistent(model[0])
    assert torch.equal(weight_of(model[0]), weight_of(source))
    x = spikes(4, 20)
    assert torch.equal(model(x), source(x))
    model(x).sum().backward()
    assert model[0].values.grad.shape == source.values.shape


def set_entry(key, place, value):
    def corrupt(state):
        state[key] = state[key].clone()
        state[key][place] = value

    return corrupt


def drop(*keys):
    def corrupt(state):
        for key in keys:
            del state[key]

    return corrupt


def replace(key, make):
    def corrupt(state):
        state[key] = make(state[key])

    return corrupt


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "corrupt,message",
    [
        (set_entry("col_indices", 5, 99), r"col_indices\[5\] = 99 is outside \[0, 5\)"),
        (set_entry("col_indices", 1, -1), r"col_indices\[1\] = -1 is outside"),
        (set_entry("crow_indices", 1, 1000), r"crow_indices\[2\] = \d+ is less than"),
        (set_entry("crow_indices", 0, -2), r"crow_indices\[0\] = -2, expected 0"),
        (set_entry("crow_indices", -1, 3), r"crow_indices\[4\] = 3, expected the number of blocks"),
        (replace("col_indices", lambda t: t.flip(0)), r"does not exceed the entry before it in block row 0"),
        (replace("col_indices", lambda t: t.float()), r"col_indices: expected int32 or int64"),
        (replace("col_indices", list), r"col_indices: expected a tensor, got list"),
        (replace("values", list), r"values: expected a tensor, got list"),
        (replace("values", lambda t: t[1:]), r"values: expected shape"),
        (replace("values", lambda t: t.flatten()), r"values: expected shape"),
        (drop("crow_indices"), r"crow_indices"),
        (drop("col_indices"), r"col_indices"),
    ],
)
def test_a_hostile_checkpoint_changes_nothing(corrupt, message, strict):
    source = SparseLinear(20, 13, density=0.5, generator=generator(1))
    target = SparseLinear(20, 13, density=0.5, generator=generator(2))
    before = copy.deepcopy(target.state_dict())
    state = source.state_dict()
    corrupt(state)
    with pytest.raises(RuntimeError, match=message):
        target.load_state_dict(state, strict=strict)
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert_index_consistent(target)


@pytest.mark.parametrize("density", [0.5, 0.2], ids=["same number of blocks", "fewer blocks"])
def test_values_and_index_come_together(density):
    """Values alone may fit the layer's own index; an index alone would put old values in new places."""
    source = SparseLinear(20, 13, density=0.5, generator=generator(1)).state_dict()
    for keys in (("values",), ("crow_indices", "col_indices")):
        target = SparseLinear(20, 13, density=density, generator=generator(2))
        before = copy.deepcopy(target.state_dict())
        part = {k: source[k] for k in keys}
        if keys == ("values",) and density == 0.5:
            target.load_state_dict(part, strict=False)
            before["values"] = source["values"]
        else:
            with pytest.raises(RuntimeError, match="values"):
                target.load_state_dict(part, strict=False)
        for key, value in target.state_dict().items():
            assert torch.equal(value, before[key]), key
        assert_index_consistent(target)


def test_a_dense_checkpoint_loads_at_the_layer_s_own_blocks():
    dense = nn.Linear(20, 13)
    layer = SparseLinear(20, 13, density=0.5, generator=generator())
    layer.load_state_dict(dense.state_dict(), strict=True)
    mask = oracle.dense(np.ones(layer.values.shape), layer.topology.block_ids().numpy(), (13, 20))
    assert torch.equal(weight_of(layer), dense.weight.detach() * torch.from_numpy(mask))
    assert torch.equal(layer.bias, dense.bias)
    with pytest.raises(RuntimeError, match=r"weight: expected shape \(13, 20\), got \(13, 21\)"):
        layer.load_state_dict(nn.Linear(21, 13).state_dict())


def test_moving():
    layer = SparseLinear(20, 13, density=0.5, generator=generator())
    weight, index = weight_of(layer), [t.clone() for t in layer.topology.index_tensors()]
    layer.to(torch.bfloat16)
    assert layer.values.dtype == layer.bias.dtype == torch.bfloat16
    for own, before in zip(layer.topology.index_tensors(), index, strict=True):
        assert torch.equal(own, before)
    assert layer(spikes(3, 20).bfloat16()).dtype == torch.bfloat16
    layer.double()
    torch.testing.assert_close(weight_of(layer), weight, rtol=2**-8, atol=0)
    layer.float().to(device="meta")
    assert {t.device.type for t in layer.topology.index_tensors()} == {"meta"}
    assert layer(torch.zeros(3, 20, device="meta")).shape == (3, 13)


def test_a_meta_layer_takes_a_checkpoint():
    """How large models are loaded: built without memory, then given their tensors."""
    source = SparseLinear(20, 13, density=0.5, generator=generator())
    layer = SparseLinear(20, 13, density=0.5, device="meta")
    assert layer.values.is_meta
    assert "in_features=20" in repr(layer)
    layer.load_state_dict(source.state_dict(), assign=True)
    assert_index_consistent(layer)
    x = spikes(4, 20)
    assert torch.equal(layer(x), source(x))


def test_the_topology_is_a_view():
    layer = SparseLinear(20, 13, density=0.5, generator=generator())
    assert layer.topology.col_indices is layer.col_indices
    layer.topology.assign_(torch.arange(layer.topology.nnzb))
    assert_index_consistent(layer)
    x = spikes(4, 20)
    torch.testing.assert_close(layer(x), x @ weight_of(layer).float().T + layer.bias)


# Conversions


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block_size", [1, (4, 2), 16])
def test_to_dense(block_size, bias):
    layer = SparseLinear(20, 13, bias, density=0.5, block_size=block_size, generator=generator())
    layer.values.data.masked_fill_(~layer.topology.valid(), torch.nan)
    dense = layer.to_dense()
    assert type(dense) is nn.Linear
    assert torch.equal(dense.weight.double(), weight_of(layer))
    assert dense.bias is None if not bias else torch.equal(dense.bias, layer.bias)
    assert dense.weight.untyped_storage().data_ptr() != layer.values.untyped_storage().data_ptr()


@pytest.mark.parametrize("block", [(1, 1), (4, 2), (8, 8)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_from_dense_keeps_the_largest_blocks(block, density):
    dense = nn.Linear(20, 13)
    layer = SparseLinear.from_dense(dense, density, block_size=block)
    grid = -(-13 // block[0]), -(-20 // block[1])
    weight = dense.weight.detach().numpy()
    means = np.array(
        [
            np.abs(weight[r * block[0] : (r + 1) * block[0], c * block[1] : (c + 1) * block[1]]).mean()
            for r, c in np.ndindex(*grid)
        ]
    )
    count = round(density * means.size)
    kept = np.sort(np.argsort(-means)[:count])
    np.testing.assert_array_equal(layer.topology.block_ids(), kept)
    np.testing.assert_array_equal(layer.values.detach(), oracle.blocks(weight, kept, block))
    assert torch.equal(layer.bias, dense.bias)
    assert_index_consistent(layer)


@pytest.mark.parametrize("garbage", [0.0, torch.nan, torch.inf])
def test_from_dense_by_mask(garbage):
    dense = nn.Linear(20, 13, bias=False)
    mask = torch.rand(13, 20) < 0.1
    weight = dense.weight.detach().clone()
    dense.weight.data[~mask] = garbage
    layer = SparseLinear.from_dense(dense, mask=mask, block_size=(4, 2))
    assert torch.equal(weight_of(layer), weight.double() * mask)
    touched = {int(r // 4 * 10 + c // 2) for r, c in mask.nonzero()}
    assert layer.topology.block_ids().tolist() == sorted(touched)
    assert layer.bias is None


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        (
            {"module": nn.Conv2d(1, 1, 1), "density": 0.1},
            TypeError,
            "module: expected an nn.Linear, got Conv2d",
        ),
        ({}, ValueError, "either density or mask"),
        (
            {"density": 0.1, "mask": torch.ones(13, 20, dtype=torch.bool)},
            ValueError,
            "either density or mask",
        ),
        ({"density": 1.5}, ValueError, "density: expected a fraction from 0 to 1, got 1.5"),
        ({"mask": torch.ones(13, 20)}, ValueError, r"mask: expected bool \(13, 20\), got torch.float32"),
        ({"mask": torch.ones(20, 13, dtype=torch.bool)}, ValueError, r"mask: expected bool .*\(20, 13\)"),
    ],
)
def test_from_dense_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        SparseLinear.from_dense(**{"module": nn.Linear(20, 13), **arguments})


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("shape", [(20, 16), (18, 13)], ids=["aligned", "overhang"])
def test_torch_bsr(shape):
    layer = SparseLinear(*shape, density=0.5, block_size=(4, 2), generator=generator())
    layer.values.data.masked_fill_(~layer.topology.valid(), torch.nan)
    bsr = layer.to_torch_bsr()
    assert bsr.layout == torch.sparse_bsr
    assert torch.equal(bsr.to_dense()[: shape[1], : shape[0]].double(), weight_of(layer))
    aligned = shape == (20, 16)
    assert (bsr.values().data_ptr() == layer.values.data_ptr()) == aligned
    back = SparseLinear.from_torch_bsr(bsr, layer.bias, in_features=shape[0], out_features=shape[1])
    assert torch.equal(weight_of(back), weight_of(layer))
    assert torch.equal(back.bias, layer.bias)
    assert back.block_size == (4, 2)
    assert_index_consistent(back)
    back.values.data.zero_()
    assert layer.values.any()


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_from_torch_bsr_wrong():
    good = SparseLinear(20, 16, density=0.5, block_size=(4, 2)).to_torch_bsr()
    csr = torch.eye(4).to_sparse_csr()
    odd = torch.eye(6).to_sparse_bsr((3, 3))
    values, col = good.values(), good.col_indices()
    unsorted = torch.sparse_bsr_tensor(
        good.crow_indices(), col.flip(0), values, good.shape, check_invariants=False
    )
    for weight, options, error, message in [
        (csr, {}, TypeError, "weight: expected a torch.sparse_bsr matrix, got torch.sparse_csr"),
        (torch.eye(4), {}, TypeError, "weight: expected a torch.sparse_bsr matrix, got torch.strided"),
        (odd, {}, ValueError, "block_size: expected powers of two"),
        (unsorted, {}, ValueError, r"col_indices\[\d+\] = \d+ does not exceed"),
        (good, {"in_features": 30}, ValueError, r"in_features: expected 19 to 20, got 30"),
        (good, {"out_features": 12}, ValueError, r"out_features: expected 13 to 16, got 12"),
    ]:
        with pytest.raises(error, match=message):
            SparseLinear.from_torch_bsr(weight, **options)


def test_packed_spikes_of_another_precision():
    layer = SparseLinear(20, 13, density=0.5, generator=generator()).double()
    x = spikes(2, 3, 20).requires_grad_()
    y = layer(esl.functional.pack(x))
    assert y.dtype == torch.float64
    y.sum().backward()
    torch.testing.assert_close(x.grad.double(), weight_of(layer).sum(0).expand(2, 3, 20))


def test_an_explicit_backend_that_cannot_serve_says_why():
    layer = SparseLinear(20, 13).double()
    with _backends.use("native"), pytest.raises(ValueError, match=re.escape("not in torch.float64")):
        layer(spikes(2, 20).double())


def test_conversions_leave_the_random_state_alone():
    dense = torch.nn.Linear(12, 8)
    before = torch.get_rng_state()
    layer = SparseLinear.from_dense(dense, density=0.5)
    SparseLinear.from_torch_bsr(layer.to_torch_bsr(), layer.bias)
    layer.to_dense()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_input_that_is_negated_lazily(backend):
    """What ``z.conj().imag`` is where its elements stand side by side: memory holds the opposite."""
    layer = SparseLinear(5, 4, density=1.0)
    x = torch.randn(3, 5)
    lazy = torch._neg_view(x.neg())
    assert lazy.is_neg() and lazy.is_contiguous() and torch.equal(lazy, x)
    assert torch.equal(layer(lazy), layer(x))
