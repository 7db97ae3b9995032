"""Networks as NIR graphs: read back by nirtorch they give the same spikes."""

import numpy as np
import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.export import to_nir
from esl_sparse.models import convnet, vggsnn
from esl_sparse.models.resnet19 import BasicBlock

nir = pytest.importorskip("nir", reason="nir is not installed")
nirtorch = pytest.importorskip("nirtorch", reason="nirtorch is not installed")

T, B, DT = 5, 3, 1e-3


class Euler(nn.Module):
    """NIR's neurons by the forward Euler step, one step a call."""

    def __init__(self, node):
        super().__init__()
        self.leaky = isinstance(node, nir.LIF)
        self.rate = torch.from_numpy(DT / node.tau) if self.leaky else DT
        self.r, self.threshold = torch.from_numpy(node.r), torch.from_numpy(node.v_threshold)
        self.v_reset = torch.from_numpy(node.v_reset)

    def forward(self, x, state=None):
        v = torch.zeros_like(x) if state is None else state
        v = v + self.rate * (self.r * x - (v if self.leaky else 0))
        spikes = (v > self.threshold).to(x)
        return spikes, torch.where(spikes > 0, self.v_reset.to(x), v)


def affine(node):
    layer = nn.Linear(node.weight.shape[1], node.weight.shape[0], hasattr(node, "bias"))
    layer.weight.data = torch.from_numpy(node.weight)
    if layer.bias is not None:
        layer.bias.data = torch.from_numpy(node.bias)
    return layer


def convolution(kind):
    def make(node):
        options = {name: getattr(node, name) for name in ("stride", "padding", "dilation", "groups")}
        out, per_group, *kernel = node.weight.shape
        layer = kind(per_group * node.groups, out, kernel, **options)
        layer.weight.data, layer.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        return layer

    return make


MAP = {
    nir.LIF: Euler,
    nir.IF: Euler,
    nir.Linear: affine,
    nir.Affine: affine,
    nir.Conv1d: convolution(nn.Conv1d),
    nir.Conv2d: convolution(nn.Conv2d),
    nir.Flatten: lambda node: nn.Flatten(),  # NIR's shapes have no batch dimension
}


def stepped(graph, x, path):
    """x ``[T, B, ...]`` through the graph, written to a file and read back."""
    nir.write(path, graph)
    network, state, out = nirtorch.nir_to_torch(str(path), MAP, dtype=torch.float32), None, []
    for frame in x:
        y, state = network(frame, state)
        out.append(y)
    return torch.stack(out)


def settle(model, x):
    """Norms that are no identity."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, 0.3, 0.3)
    model.train()(x)
    return model.eval()


def mlp():
    lif = [esl.nn.LIF(0.75, v_threshold=0.4), esl.nn.LIF(1.0, v_threshold=0.3)]
    norm = esl.nn.MergeTime(nn.BatchNorm1d(24))
    return nn.Sequential(nn.Linear(18, 24), norm, lif[0], nn.Linear(24, 12, bias=False), lif[1])


def conv_chain():
    return nn.Sequential(
        esl.nn.SpikingBlock(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), esl.nn.LIF(0.6), esl.nn.AvgPool2d(2)
        ),
        esl.nn.SpikingBlock(
            nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2), None, esl.nn.LIF(0.5, v_threshold=0.2)
        ),
        esl.nn.AdaptiveAvgPool2d(1),
        nn.Flatten(2),
        nn.Linear(12, 5),
    )


def steps_of_sound():
    merged = esl.nn.MergeTime(nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)))
    return nn.Sequential(merged, esl.nn.LIF(v_threshold=0.3), nn.Flatten(2), nn.Linear(8 * 12, 6))


@pytest.mark.parametrize("density", [None, 0.4])
@pytest.mark.parametrize(
    "make, size",
    [
        (mlp, (18,)),
        (conv_chain, (2, 8, 6)),
        (steps_of_sound, (3, 12)),
        (lambda: BasicBlock(4, 8, 2, 0.5), (4, 6, 6)),
        (lambda: BasicBlock(8, 8, 1, 0.5), (8, 6, 6)),
    ],
)
def test_round_trip(make, size, density, tmp_path):
    torch.manual_seed(0)
    x = (torch.rand(T, B, *size) < 0.5).float()
    model = make()
    if density:
        esl.sparsify(model, density, block_size=2, distribution="uniform")
    settle(model, x)
    expected = model(x)
    expected = expected.unpack() if isinstance(expected, esl.PackedSpikes) else expected
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read = stepped(to_nir(model, x, DT), x, tmp_path / "graph.nir")
    assert expected.count_nonzero() > 20
    same = (read - expected).abs() < 1e-4
    assert same.float().mean() > 0.999, (
        f"{(~same).sum()} of {same.numel()} differ"
    )  # a spike at the threshold
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_models_from_static_images(tmp_path):
    torch.manual_seed(0)
    model = convnet(10, channels=(8, 8, 16), T=4)
    esl.sparsify(model, 0.3)
    images = torch.rand(2, 1, 28, 28)
    settle(model, images)
    graph = to_nir(model, images, DT)
    assert graph.nodes["input"].input_type["input"].tolist() == [1, 28, 28]
    assert graph.nodes["output"].output_type["output"].tolist() == [10]
    read = stepped(graph, images.expand(4, *images.shape), tmp_path / "graph.nir")
    torch.testing.assert_close(read, model(images), rtol=1e-3, atol=1e-3)


def test_structure_of_a_residual_block():
    graph = to_nir(BasicBlock(4, 8, 2, 0.5), torch.rand(2, 1, 4, 6, 6))
    into = {end: {start for start, stop in graph.edges if stop == end} for _, end in graph.edges}
    assert into["second_lif"] == {"second_conv", "second_shortcut_0"}
    assert into["second_shortcut_0"] == into["first_conv"] == {"input"}
    lif = graph.nodes["first_lif"]
    assert lif.tau == pytest.approx(np.full((8, 3, 3), 2e-4)) and lif.r == pytest.approx(2.0)


def test_vggsnn_frames():
    graph = to_nir(vggsnn(10, size=16, T=2), torch.rand(1, 2, 2, 16, 16))
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert kinds.count("Conv2d") == kinds.count("LIF") == 8 and kinds.count("AvgPool2d") == 4


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


class Scaled(Twice):
    def forward(self, x):
        return 0.5 * self.layer(x)


class Doubled(Twice):
    def forward(self, x):
        y = self.layer(x)
        return self.layer(y + y)


class Both(Twice):
    def forward(self, x):
        return self.layer(x), x


@pytest.mark.parametrize(
    "model, message",
    [
        (Twice(), "layer: is called twice"),
        (Scaled(), "mul: NIR has no node"),
        (Doubled(), "add: NIR has no node"),
        (Both(), "gives a tuple"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "relu: NIR has no node"),
        (nn.Sequential(nn.Linear(4, 4), esl.nn.LIF(v_reset=None)), "v_reset is None"),
        (nn.Sequential(nn.Flatten(2)), "no layer that NIR has a node for"),
        (esl.nn.MergeTime(nn.BatchNorm1d(4)), "only directly behind a linear map"),
        (nn.Sequential(esl.nn.TemporalLinear(4, 2)), "fire once"),
        (nn.Sequential(nn.Unflatten(2, (2, 2)), nn.Linear(2, 3), nn.Flatten(2), nn.Linear(6, 3)), "flatten"),
    ],
)
def test_what_nir_cannot_say(model, message):
    with pytest.raises(NotImplementedError, match=message):
        to_nir(model, torch.rand(3, 2, 4))


def test_wrong_step():
    with pytest.raises(ValueError, match="dt: expected a positive number of seconds, got 0"):
        to_nir(mlp(), torch.rand(T, B, 18), dt=0)
