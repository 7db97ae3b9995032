"""Which layers ``sparsify`` takes, and what each is asked to become: patterns, overrides, masks."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import esl_sparse as esl
from esl_sparse.rewire import erk


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "features": nn.Sequential(nn.Conv2d(8, 24, 3), nn.BatchNorm2d(24), nn.Conv2d(24, 16, 3)),
            "head": nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 24)),
        }
    )


def converted(report):
    return [layer.name for layer in report.layers if layer.converted]


@pytest.mark.parametrize(
    "exclude, left",
    [
        ("head", ["features.0", "features.2"]),
        ("head.*", ["features.0", "features.2"]),
        ("*.0", ["features.2", "head.1"]),
        (["features.[0-1]", "head.1"], ["features.2", "head.0"]),
        (lambda name, module: isinstance(module, nn.Conv2d), ["head.0", "head.1"]),
        ([lambda name, module: name.startswith("head."), "features.0"], ["features.2"]),
        (lambda name, module: False, ["features.0", "features.2", "head.0", "head.1"]),
    ],
)
def test_exclude(model, exclude, left):
    report = esl.sparsify(model, 0.2, exclude=exclude)
    assert converted(report) == left
    assert {x.reason for x in report.layers if not x.converted} <= {"excluded"}


def test_overrides_and_the_others_share_the_density(model):
    shapes = [tuple(model["features"][2].weight.shape), tuple(model["head"][1].weight.shape)]
    report = esl.sparsify(
        model,
        0.1,
        block_size=1,
        overrides={
            "head.*": {"block_size": (2, 4)},
            "*.0": 0.5,
            "features.0": {"block_size": 8, "density": 0.25},
        },
    )
    blocks = [layer.block_size for layer in report.layers]
    assert blocks == [(8, 8), (1, 1), (2, 4), (2, 4)]
    densities = [layer.density for layer in report.layers]
    assert densities[0] == pytest.approx(0.25, abs=0.01) and densities[2] == pytest.approx(0.5, abs=0.01)
    assert [densities[1], densities[3]] == pytest.approx(erk(shapes, 0.1), abs=0.01)


def test_an_override_of_1_leaves_the_layer_dense(model):
    report = esl.sparsify(model, 0.2, overrides={"head.1": 1})
    assert report.layers[-1].reason == "it is asked to have density 1"
    assert converted(report) == ["features.0", "features.2", "head.0"]


@pytest.mark.parametrize("key", ["features.2", "features.2.weight"])
def test_masks_become_the_topology(model, key):
    dense = copy.deepcopy(model["features"][2])
    mask = torch.rand(16, 24, 3, 3) < 0.05
    report = esl.sparsify(model, 0.2, block_size=1, init="magnitude", masks={key: mask})
    assert report.layers[1].active == int(mask.sum())
    kept = model["features"][2].to_dense()
    assert torch.equal(kept.weight, dense.weight * mask) and torch.equal(kept.bias, dense.bias)


def test_a_block_stands_where_the_mask_touches_it(model):
    mask = torch.zeros(24, 40, dtype=torch.bool)
    mask[5, 9] = mask[6, 9] = mask[23, 39] = True
    weight = model["head"][1].weight.detach().clone()
    esl.sparsify(model, 0.2, block_size=4, init="magnitude", masks={"head.1": mask})
    layer = model["head"][1]
    assert layer.topology.nnzb == 2 and layer.topology.block_ids().tolist() == [12, 59]
    assert torch.equal(layer.to_dense().weight, weight * mask)


def test_fresh_weights_at_a_mask(model):
    mask = torch.rand(24, 40) < 0.1
    bias = model["head"][1].bias
    esl.sparsify(model, 0.2, block_size=1, masks={"head.1": mask}, generator=torch.Generator().manual_seed(1))
    layer = model["head"][1]
    assert torch.equal(layer.to_dense().weight != 0, mask)
    assert layer.bias is bias
    bound = 1 / (mask.sum().item() / 24) ** 0.5
    assert 0.8 * bound < layer.values.abs().max() <= bound and bias.abs().max() <= bound


@pytest.mark.parametrize("block_size", [1, 4])
def test_a_model_pruned_by_torch_keeps_its_map(model, block_size):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for layer in (model["features"][0], model["features"][2], *model["head"]):
        prune.l1_unstructured(layer, "weight", 0.9)
    inputs = torch.rand(2, 8, 6, 6), torch.rand(3, 64)
    expected = model["features"](inputs[0]), model["head"](inputs[1])
    report = esl.sparsify(model, block_size=block_size, init="magnitude", optimizer=optimizer)
    assert converted(report) == ["features.0", "features.2", "head.0", "head.1"]
    if block_size == 1:
        assert report.density == pytest.approx(0.1, abs=1e-3)
    torch.testing.assert_close(model["features"](inputs[0]), expected[0])
    torch.testing.assert_close(model["head"](inputs[1]), expected[1])
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters()} <= held
    esl.Rewirer(model, optimizer, interval=1, t_end=3, grow="random")
    esl.densify(model)
    torch.testing.assert_close(model["head"](inputs[1]), expected[1])


def test_pruning_that_has_no_sparse_form(model):
    prune.l1_unstructured(model["head"][0], "bias", 0.5)
    prune.l1_unstructured(model["head"][1], "weight", 0.5)
    model["head"][1].register_forward_hook(lambda *_: None)
    reasons = [layer.reason for layer in esl.sparsify(model, 0.2).layers]
    assert reasons[2] == "its bias is pruned, and a sparse layer's bias has no mask"
    assert reasons[3] == "it has hooks, which would be lost"
    full = nn.Sequential(nn.Linear(8, 8))
    report = esl.sparsify(full, 0.2, masks={"0": torch.ones(8, 8, dtype=torch.bool)})
    assert report.layers[0].reason == "its mask keeps every weight"


MASK = torch.ones(24, 40, dtype=torch.bool)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"exclude": "tail.*"}, ValueError, r"exclude: the model has no module 'tail\.\*'"),
        ({"exclude": [3]}, TypeError, "exclude: expected names or predicates, got int"),
        ({"overrides": {"tail": 0.5}}, ValueError, "overrides: the model has no module 'tail'"),
        ({"overrides": {"head": 1.5}}, ValueError, "expected a density from 0 to 1, got 1.5"),
        ({"overrides": {"head": "dense"}}, TypeError, "expected a density or settings, got str"),
        ({"overrides": {"head": {"blocks": 4}}}, ValueError, "density or block_size, got 'blocks'"),
        ({"overrides": {"head": {"block_size": 3}}}, ValueError, "block_size"),
        ({"masks": {"tail": MASK}}, ValueError, "masks: no layer 'tail'"),
        ({"masks": {"head.1": MASK.int()}}, TypeError, "expected a bool tensor, got torch.int32"),
        ({"masks": {"head.1": [[True]]}}, TypeError, "expected a bool tensor, got list"),
        ({"masks": {"head.0": MASK}}, ValueError, r"expected shape \(40, 64\), got \(24, 40\)"),
        (
            {"masks": {"head.1": MASK}, "exclude": "head"},
            ValueError,
            "layer 'head.1' stays as it is: excluded",
        ),
    ],
)
def test_wrong_choices_change_nothing(model, kwargs, error, message):
    before = {name: id(module) for name, module in model.named_modules()}
    prune.l1_unstructured(model["features"][0], "weight", 0.5)
    with pytest.raises(error, match=message):
        esl.sparsify(model, 0.2, **kwargs)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert prune.is_pruned(model["features"][0])
