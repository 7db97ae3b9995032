"""A layer of neurons that never fires says so, once."""

import copy
import pickle
import warnings

import torch
from torch import nn

import esl_sparse as esl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage = nn.ModuleDict({"neurons": esl.nn.LIF(), "more": esl.nn.LIF()})

    def forward(self, x):
        return self.stage["more"](3 * self.stage["neurons"](x))


def calls(run, n):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(n):
            run()
    return [str(warning.message) for warning in seen]


def test_silent_for_100_calls():
    net = Net()
    assert calls(lambda: net(torch.zeros(4, 2, 3)), 99) == []
    said = calls(lambda: net(torch.zeros(4, 2, 3)), 1)
    assert [line.split(":")[0] for line in said] == ["stage.neurons", "stage.more"]
    assert "no neuron has fired in 100 training calls" in said[0]
    assert calls(lambda: net(torch.zeros(4, 2, 3)), 250) == []


def test_a_layer_that_fires_is_quiet_until_it_falls_silent():
    net = Net()
    assert calls(lambda: net(torch.full((4, 2, 3), 2.0)), 150) == []
    assert calls(lambda: net(torch.zeros(4, 2, 3)), 99) == []
    said = calls(lambda: net(torch.zeros(4, 2, 3)), 101)
    assert len(said) == 2


def test_one_spike_in_between_starts_the_count_anew():
    lif = esl.nn.LIF()
    assert calls(lambda: lif(torch.zeros(4, 3)), 60) == []
    lif(torch.full((4, 3), 2.0))
    assert calls(lambda: lif(torch.zeros(4, 3)), 100) == []


def test_evaluation_and_empty_batches_do_not_count():
    lif = esl.nn.LIF()
    assert calls(lambda: lif(torch.zeros(4, 0, 3)), 120) == []
    lif.eval()
    assert calls(lambda: lif(torch.zeros(4, 2, 3)), 120) == []


def test_the_fused_block():
    conv = esl.nn.SparseConv2d(8, 8, 3, padding=1, density=0.5)
    net = nn.Sequential(esl.nn.SpikingBlock(conv, None, esl.nn.LIF(v_threshold=1e6), nn.AvgPool2d(2)))
    assert net[0].is_fused
    said = calls(lambda: net(torch.ones(2, 2, 8, 4, 4)), 120)
    assert len(said) == 1 and said[0].startswith("0.lif:")


def test_no_state_in_files_and_copies_go_on():
    lif = esl.nn.LIF()
    assert not lif.state_dict()
    calls(lambda: lif(torch.zeros(4, 3)), 60)
    for other in (copy.deepcopy(lif), pickle.loads(pickle.dumps(lif))):
        assert len(calls(lambda other=other: other(torch.zeros(4, 3)), 40)) == 1


def test_shapes_alone_and_transforms_do_not_count():
    lif = esl.nn.LIF()
    x = torch.zeros(3, 4, 5)
    assert calls(lambda: lif(x.to("meta")), 101) == []
    assert calls(lambda: torch.func.grad(lambda y: lif(y).sum())(x), 101) == []
