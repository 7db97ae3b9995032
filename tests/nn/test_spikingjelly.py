"""SpikingJelly's networks become sparse, in both of its step modes, and dense again."""

import copy
from pathlib import Path

import pytest
import torch

import esl_sparse as esl
from esl_sparse.data import Dataset, Split

pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")

from spikingjelly.activation_based import functional, layer, neuron, surrogate

from .test_rewired_over_time import patterns, trained

EXAMPLE = Path(__file__).parents[2] / "examples" / "spikingjelly_three_lines.py"


def network(mode):
    """Frames [T, N, 2, 8, 6] (one step: [N, 2, 8, 6]) to outputs of 10 classes."""

    def lif():
        return neuron.LIFNode(
            tau=2.0,
            decay_input=False,
            v_reset=0.0,
            surrogate_function=surrogate.PiecewiseQuadratic(1.0),
            step_mode=mode,
        )

    return torch.nn.Sequential(
        layer.Conv2d(2, 12, 3, padding=1, bias=False, step_mode=mode),
        layer.BatchNorm2d(12, step_mode=mode),
        lif(),
        layer.AvgPool2d(2, 2, step_mode=mode),
        layer.Conv2d(12, 20, 3, padding=1, groups=2, step_mode=mode),
        lif(),
        layer.Flatten(step_mode=mode),
        layer.Linear(20 * 4 * 3, 10, step_mode=mode),
    )


def frames(*leading):
    return torch.bernoulli(torch.full((*leading, 2, 8, 6), 0.3))


SHARES = {"distribution": "uniform", "block_size": (4, 2)}


@pytest.mark.parametrize(("mode", "leading"), [("m", (3, 5)), ("s", (5,))])
def test_the_sparse_network_is_the_same_map(mode, leading):
    model, x = network(mode), frames(*leading)
    report = esl.sparsify(model, 0.4, **SHARES)
    assert [made.reason for made in report.layers] == ["", "", ""]
    kinds = [esl.nn.SparseConv2d, esl.nn.SparseConv2d, esl.nn.SparseLinear]
    assert [type(model[i]) for i in (0, 4, 7)] == kinds
    dense = copy.deepcopy(model)
    esl.densify(dense)
    assert [type(dense[i]) for i in (0, 4, 7)] == [layer.Conv2d, layer.Conv2d, layer.Linear]
    assert {dense[i].step_mode for i in (0, 4, 7)} == {mode}
    assert dense[0].bias is None and dense[4].groups == 2
    # Layer by layer: one spike that rounding flips would make all that follows incomparable.
    for sparse, own in zip(model, dense, strict=True):
        torch.testing.assert_close(sparse(x), own(x), rtol=1e-4, atol=1e-5)
        functional.reset_net(sparse)
        functional.reset_net(own)
        x = own(x).detach()


def test_it_trains_and_rewires():
    model = network("m")
    esl.sparsify(model, 0.4, **SHARES)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    rewirer = esl.Rewirer(model, optimizer, grow="gradient", interval=2, t_end=10)
    before = [model[i].topology.block_ids().clone() for i in (0, 4, 7)]
    for _ in range(4):
        functional.reset_net(model)
        loss = model(frames(3, 5)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewirer.step()
    assert rewirer.iteration == 4
    moved = [
        not torch.equal(ids, model[i].topology.block_ids()) for i, ids in zip((0, 4, 7), before, strict=True)
    ]
    assert any(moved)


def spiking():
    return neuron.LIFNode(
        tau=2.0, decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m"
    )


class Attention(torch.nn.Module):
    """Queries, keys and values are spikes, so there is no softmax: ``[T, N, L, D] -> [T, N, L, D]``."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.maps = torch.nn.ModuleDict({k: torch.nn.Linear(width, width) for k in ("q", "k", "v", "out")})
        self.neurons = torch.nn.ModuleDict({k: spiking() for k in ("q", "k", "v", "mixed", "out")})

    def forward(self, x):
        q, k, v = (
            self.neurons[name](3 * self.maps[name](x)).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for name in "qkv"
        )
        mixed = (q @ k.transpose(-1, -2) @ v / 4).transpose(-3, -2).flatten(-2)
        return self.neurons["out"](3 * self.maps["out"](self.neurons["mixed"](mixed)))


class Spikformer(torch.nn.Module):
    """Patches by a convolution, one encoder block of attention and an MLP, a head: ``[T, N, 1, 8, 8] -> [N, 4]``."""

    def __init__(self, width=16):
        super().__init__()
        self.patches = layer.Conv2d(1, width, 4, stride=4, step_mode="m")
        self.norm = layer.BatchNorm2d(width, step_mode="m")
        self.neurons = spiking()
        self.attention = Attention(width, heads=2)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 32), spiking(), torch.nn.Linear(32, width), spiking()
        )
        self.head = torch.nn.Linear(width, 4)

    def forward(self, x):
        functional.reset_net(self)
        tokens = self.neurons(self.norm(self.patches(x))).flatten(3).transpose(-1, -2)
        tokens = tokens + self.attention(tokens)
        tokens = tokens + self.mlp(tokens)
        return self.head(tokens.mean(2)).mean(0)


def test_a_spikformer_trains_and_rewires():
    model = Spikformer()
    report = esl.sparsify(model, 0.5, distribution="uniform", block_size=2, exclude="head")
    assert [x.name for x in report.layers if not x.converted] == ["head"] and len(report.layers) == 8
    x, y = patterns()
    losses = trained(model, x.repeat(3, 1, 1, 1, 1), y, "momentum")
    assert losses[-1] < 0.5 * losses[0]
    functional.reset_net(model)
    dense = copy.deepcopy(model).eval()
    esl.densify(dense)
    assert not any(isinstance(module, esl.nn.SparseLinear) for module in dense.modules())
    inputs = x.repeat(3, 1, 1, 1, 1)
    agree = (model.eval()(inputs).argmax(1) == dense(inputs).argmax(1)).float().mean()
    assert agree > 0.9  # a spike that rounding flips may change a sample


def test_step_mode_may_change_later():
    model, x = network("s"), frames(3, 5)
    esl.sparsify(model, 0.4, **SHARES)
    functional.set_step_mode(model, "m")
    assert model(x).shape == (3, 5, 10)


def test_subclasses_of_its_layers_stay_dense():
    class Normed(layer.Conv2d):
        def forward(self, x):
            return super().forward(x) / self.weight.norm()

    model = torch.nn.Sequential(Normed(2, 8, 3))
    (made,) = esl.sparsify(model, 0.4).layers
    assert "subclass of nn.Conv2d" in made.reason


def test_a_model_that_is_a_layer():
    with pytest.raises(ValueError, match=r"SparseConv2d\.from_dense"):
        esl.sparsify(layer.Conv2d(2, 8, 3), 0.4)


@pytest.mark.skipif(not EXAMPLE.exists(), reason="no examples here: an installed package is tested")
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.filterwarnings("ignore:t_end=")
def test_the_example_with_and_without_its_three_lines(sparse, capsys):
    lines = EXAMPLE.read_text().splitlines()
    marked = [line for line in lines if line.endswith("# +")]
    assert [line.split("(")[0].split(" = ")[-1].strip() for line in marked] == [
        "esl.sparsify",
        "esl.Rewirer",
        "rewirer.step",
    ]
    script = {"__name__": "example"}
    exec("\n".join(line for line in lines if sparse or line not in marked), script)
    split = Split(
        torch.randint(2, (40, 2, 2, 8, 8), dtype=torch.uint8), torch.arange(40) % 10, torch.Tensor.float
    )
    model = script["network"]((4, 8, 8, 8), size=8)
    script["main"](Dataset("noise", "here", split, split, 10), model)
    assert "epoch 0: test accuracy" in capsys.readouterr().out
    assert any(isinstance(module, esl.nn.SparseConv2d) for module in model) == sparse
