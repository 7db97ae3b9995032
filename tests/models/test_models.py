"""The networks of the paper: sizes, densities, shapes; and that sparse ones compute what dense ones do."""

import copy
import itertools

import pytest
import torch

import esl_sparse as esl
from esl_sparse.models import SpikingCNN, SpikingResNet, convnet, resnet19, vggsnn
from esl_sparse.models.steps import as_steps

from ..nn.block_cases import distances


def cnn(**options):
    return SpikingCNN((6, 8, "P", 10, "P"), 3, 12, 5, **{"T": 3, **options})


def resnet(**options):
    return SpikingResNet((8, 12, 16), (2, 1, 1), 5, stem=6, hidden=10, **{"T": 3, **options})


SMALL = {"cnn": cnn, "resnet": resnet}


@pytest.fixture(params=SMALL)
def make(request):
    return SMALL[request.param]


def images(n=4):
    return torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def frames(n=4, T=3):
    return (torch.rand(n, T, 3, 12, 12, generator=torch.Generator().manual_seed(4)) < 0.3).float()


def matrices(model):
    return {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}


# Sizes: reproduction of TET's networks


def test_vggsnn_has_the_published_size():
    model = vggsnn()
    sizes = matrices(model)
    assert sizes.pop("readout.linear.weight") == 46_080
    assert sum(sizes.values()) == 9_217_152 and len(sizes) == 8
    assert all(block.conv.bias is not None for block in model.blocks)
    assert [block.pool is not None for block in model.blocks] == [False, True] * 4
    assert [block.conv.out_channels for block in model.blocks] == [64, 128, 256, 256, 512, 512, 512, 512]


def test_resnet19_has_the_published_size():
    model = resnet19()
    assert sum(matrices(model).values()) == 12_619_968
    assert len(model.blocks) == 8 and model.T == 2
    assert all(block.second.shortcut is not None for block in (model.blocks[i] for i in (0, 3, 6)))
    assert sum(block.second.shortcut is not None for block in model.blocks) == 3
    assert resnet19(100, T=4).readout.linear.out_features == 100


@pytest.mark.parametrize(
    "density, expected",
    [
        (0.1, [1.0, 0.475, 0.234, 0.155, 0.116, 0.077, 0.077, 0.077, 1.0]),
        (0.01, [0.60, 0.026, 0.013, 0.008, 0.006, 0.004, 0.004, 0.004, 0.96]),
    ],
)
def test_erk_densities_of_vggsnn(density, expected):
    digits = 3 if density == 0.1 else 2
    report = esl.sparsify(vggsnn(), density, block_size=1)
    for layer, share in zip(report.layers, expected, strict=True):
        assert round(layer.density, digits if share > 0.1 else 3) == pytest.approx(share), layer.name
    assert report.density == pytest.approx(density, abs=1e-6)


def test_erk_densities_of_resnet19():
    report = esl.sparsify(resnet19(), 0.5, block_size=1)
    found = {layer.name: round(layer.density, 2) for layer in report.layers}
    dense = [name for name, density in found.items() if density == 1.0]
    stages = {f"blocks.{i}.{part}.conv" for i in (0, 1, 2) for part in ("first", "second")}
    shortcuts = {f"blocks.{i}.second.shortcut.0" for i in (0, 3, 6)}
    assert set(dense) == {
        "stem.conv",
        *stages,
        *shortcuts,
        "blocks.3.first.conv",
        "hidden",
        "readout.linear",
    }
    assert found.pop("blocks.6.first.conv") == 0.50
    for name, density in found.items():
        if name not in dense:
            assert density == (0.67 if int(name.split(".")[1]) < 6 else 0.33), name
    assert report.density == pytest.approx(0.5, abs=1e-6)


# Shapes


@pytest.mark.parametrize("sparse", [False, True])
def test_images_and_frames_give_an_output_at_each_step(make, sparse):
    model = make()
    if sparse:
        esl.sparsify(model, 0.3)
    for x in (images(), frames()):
        y = model(x)
        assert y.shape == (3, 4, 5) and y.isfinite().all()
    summed = make(readout="integrate")
    summed.load_state_dict(make().state_dict())
    plain = make()
    plain.load_state_dict(summed.state_dict())
    torch.testing.assert_close(summed(images()), plain(images()).cumsum(0))


def test_the_networks_of_the_paper_run():
    with torch.no_grad():
        for model, x, outputs in (
            (vggsnn(T=2), torch.rand(1, 2, 2, 48, 48), 10),
            (resnet19(100, T=2), torch.rand(1, 3, 32, 32), 100),
            (convnet(T=2), torch.rand(1, 1, 28, 28), 10),
        ):
            esl.sparsify(model, 0.02)
            assert model.eval()(x).shape == (2, 1, outputs)


def test_images_are_not_copied():
    x = images()
    steps = as_steps(x, 5)
    assert steps.shape == (5, *x.shape) and steps.data_ptr() == x.data_ptr() and steps.stride(0) == 0
    assert torch.equal(as_steps(frames(), 3)[1], frames()[:, 1])


# Sparse and dense


def loss(y):
    return (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)).sum()


@pytest.mark.parametrize("x", [images(5), frames(5)], ids=["images", "frames"])
def test_at_density_1_it_computes_what_the_dense_network_does(make, x):
    """Outputs, running statistics and gradients, in the first training step and in evaluation after it."""
    for seed in itertools.count():
        torch.manual_seed(seed)
        dense = make()
        sparse = copy.deepcopy(dense)
        with distances(dense.double()) as margins:
            y = dense(x.double())
            loss(y).backward()
            dense.eval()
            after = dense(x.double())
        if min(margins) > 2e-5:
            break
    report = esl.sparsify(sparse, 1.0, distribution="uniform", init="magnitude")
    assert report.density == 1.0
    assert all(
        layer.converted for layer in report.layers if ".conv" in layer.name or "shortcut" in layer.name
    )
    actual = sparse(x)
    torch.testing.assert_close(actual, y, rtol=1e-4, atol=1e-5, check_dtype=False)
    loss(actual).backward()
    torch.testing.assert_close(sparse.eval()(x), after, rtol=1e-4, atol=1e-5, check_dtype=False)
    for (name, p), q in zip(dense.named_parameters(), sparse.parameters(), strict=True):
        if name.endswith("conv.bias"):
            continue  # zero before a batch norm
        grad = q.grad
        if q.dim() == 3:  # blocks of all places
            layer = sparse.get_submodule(name.rpartition(".")[0])
            with torch.no_grad():
                layer.values.copy_(grad)
                grad = layer.to_dense().weight
        scale = float(p.grad.abs().max())
        torch.testing.assert_close(
            grad,
            p.grad,
            rtol=1e-3,
            atol=1e-4 * scale,
            check_dtype=False,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    for name, buffer in dense.named_buffers():
        torch.testing.assert_close(sparse.get_buffer(name), buffer, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_dense_again_it_computes_the_same(make):
    for seed in itertools.count():
        torch.manual_seed(seed)
        model = make().eval()
        esl.sparsify(model, 0.4)
        dense = copy.deepcopy(model)
        esl.densify(dense)
        with distances(dense.double()) as margins:
            y = dense(images().double())
        if min(margins) > 2e-5:
            break
    assert matrices(dense).keys() == matrices(make()).keys()
    torch.testing.assert_close(model(images()), y, rtol=1e-4, atol=1e-5, check_dtype=False)
    for name, layer in dense.named_modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            sparse = model.get_submodule(name)
            weight = sparse.to_dense().weight if hasattr(sparse, "to_dense") else sparse.weight
            assert torch.equal(layer.weight.float(), weight), name


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("x", [images(8), frames(8)], ids=["images", "frames"])
def test_a_gradient_reaches_every_parameter(make, sparse, x):
    model = make()
    if sparse:
        esl.sparsify(model, 0.5, distribution="uniform")
    if make is resnet:  # its hidden features, without a norm, do not spike before training
        with torch.no_grad():
            next(model.hidden.parameters()).mul_(10)
    x = x.clone().requires_grad_()
    loss(model(x)).backward()
    reached = {name: bool(p.grad.isfinite().all() and p.grad.any()) for name, p in model.named_parameters()}
    assert all(reached.values()), reached
    assert x.grad.isfinite().all() and x.grad.any()


# Errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cnn()(torch.rand(4, 2, 3, 12, 12)), "x: expected 3 frames, got 2"),
        (lambda: cnn()(torch.rand(3, 12, 12)), r"x: expected images \[B, C, H, W\] or frames"),
        (lambda: cnn(readout="sum"), "readout: expected 'current' or 'integrate', got 'sum'"),
        (lambda: resnet(readout="sum"), "readout: expected"),
        (lambda: SpikingResNet((8, 12), (1,)), "shorter"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_images_of_other_channels_are_refused_by_name(make):
    model = make()
    esl.sparsify(model, 0.5, distribution="uniform")
    with pytest.raises(
        ValueError, match=r"x: expected \[T, N, 3, H, W\], got Tensor of shape \(3, 4, 2, 12, 12\)"
    ):
        model(torch.rand(4, 2, 12, 12))
