"""The state of any optimiser follows its blocks: kept ones bit for bit, grown ones as it starts."""

from copy import copy

import pytest
import torch
from torch import optim

from .models import by_id, everything, mlp, rewirer, same, train_step

LR = 0.03


class Lion(optim.Optimizer):
    """An optimiser of somebody else's: no default for lr, state made late, an option that is no argument."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.sub_(group["lr"] * torch.lerp(p.grad, m, group["betas"][0]).sign())
                m.lerp_(p.grad, 1 - group["betas"][1])


class PerRow(Lion):
    """Keeps something for which nothing says which block it belongs to."""

    def step(self):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["odd"] = torch.zeros(p.numel() + 1)


OPTIMIZERS = {  # how it is made, how many slots a weight has, and how they start where that is not 0
    "SGD": (lambda p: optim.SGD(p, LR), 0, {}),
    "SGD momentum": (lambda p: optim.SGD(p, LR, momentum=0.9), 1, {}),
    "SGD nesterov foreach": (lambda p: optim.SGD(p, LR, momentum=0.9, nesterov=True, foreach=True), 1, {}),
    "SGD fused": (lambda p: optim.SGD(p, LR, momentum=0.9, fused=True), 1, {}),
    "Adam": (lambda p: optim.Adam(p, LR), 2, {}),
    "Adam amsgrad": (lambda p: optim.Adam(p, LR, amsgrad=True, weight_decay=0.1), 3, {}),
    "Adam foreach": (lambda p: optim.Adam(p, LR, foreach=True), 2, {}),
    "Adam fused": (lambda p: optim.Adam(p, LR, fused=True), 2, {}),
    "Adam named": (lambda p: optim.Adam([(str(i), x) for i, x in enumerate(p)], LR), 2, {}),
    "AdamW": (lambda p: optim.AdamW(p, LR), 2, {}),
    "AdamW foreach": (lambda p: optim.AdamW(p, LR, foreach=True), 2, {}),
    "AdamW fused": (lambda p: optim.AdamW(p, LR, fused=True), 2, {}),
    "NAdam": (lambda p: optim.NAdam(p, LR), 2, {}),
    "RAdam": (lambda p: optim.RAdam(p, LR), 2, {}),
    "Adamax": (lambda p: optim.Adamax(p, LR), 2, {}),
    "Adadelta": (lambda p: optim.Adadelta(p), 2, {}),
    "Adagrad": (lambda p: optim.Adagrad(p, LR, initial_accumulator_value=0.3), 1, {"sum": 0.3}),
    "Adagrad fused": (
        lambda p: optim.Adagrad(p, LR, initial_accumulator_value=0.3, fused=True),
        1,
        {"sum": 0.3},
    ),
    "Adafactor": (lambda p: optim.Adafactor(p, LR), 2, {}),
    "ASGD": (lambda p: optim.ASGD(p, LR), 1, {}),
    "RMSprop": (lambda p: optim.RMSprop(p, LR), 1, {}),
    "RMSprop centered": (lambda p: optim.RMSprop(p, LR, centered=True, momentum=0.9, foreach=True), 3, {}),
    "Rprop": (lambda p: optim.Rprop(p, LR), 2, {"step_size": LR}),
    "Rprop foreach": (lambda p: optim.Rprop(p, LR, foreach=True), 2, {"step_size": LR}),
    "Rprop groups": (
        lambda p: optim.Rprop([{"params": [x], "lr": LR} for x in p], lr=1.0),
        2,
        {"step_size": LR},
    ),
    "Lion": (lambda p: Lion(p, LR), 1, {}),
}


def is_slot(entry):
    return isinstance(entry, torch.Tensor) and entry.dim() == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_follows_its_blocks(name):
    make, slots, start = OPTIMIZERS[name]
    model = mlp(density=0.4)
    optimizer = make(list(model.parameters()))
    for _ in range(4):
        train_step(model, optimizer)

    def state():
        return [
            {k: by_id(layer, v) if is_slot(v) else copy(v) for k, v in optimizer.state[layer.values].items()}
            for layer in model[:2]
        ]

    before, old = state(), [set(by_id(layer, layer.values)) for layer in model[:2]]
    rewirer(model, optimizer).step()
    new = [set(by_id(layer, layer.values)) for layer in model[:2]]
    for was, now, had, have in zip(before, state(), old, new, strict=True):
        assert had & have and have - had
        assert was.keys() == now.keys()
        assert sum(isinstance(entry, dict) for entry in now.values()) == slots
        for key, entry in now.items():
            if not isinstance(entry, dict):
                assert entry == was[key]
                continue
            assert all(torch.equal(entry[i], was[key][i]) for i in had & have)
            assert all((entry[i] == torch.tensor(start.get(key, 0.0))).all() for i in have - had), key
    train_step(model, optimizer)
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_first_update_may_come_before_any_state():
    model = mlp()
    optimizer = optim.Adam(model.parameters())
    rewirer(model, optimizer).step()
    train_step(model, optimizer)


def test_lbfgs_is_refused_at_once():
    model = mlp()
    with pytest.raises(ValueError, match="LBFGS starts its state"):
        rewirer(model, optim.LBFGS(model.parameters()))


def test_state_of_unknown_layout_is_refused_before_anything_changes():
    model = mlp()
    optimizer = PerRow(model.parameters(), LR)
    rewire = rewirer(model, optimizer)
    train_step(model, optimizer)
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match="PerRow keeps 'odd' as shape"):
        rewire.step()
    assert same(before, everything(model, optimizer))


def test_the_probe_leaves_the_optimizer_alone():
    model = mlp()
    optimizer = optim.Adam(model.parameters())
    train_step(model, optimizer)
    before = everything(model, optimizer)
    rewirer(model, optimizer)
    assert same(before, everything(model, optimizer))
    assert len(optimizer.param_groups) == 1 and len(optimizer.state) == len(list(model.parameters()))


def test_bfloat16_values_and_state():
    model = mlp().bfloat16()
    optimizer = optim.Adam(model.parameters())
    train_step(model, optimizer)
    rewirer(model, optimizer).step()
    assert optimizer.state[model[0].values]["exp_avg"].dtype == torch.bfloat16
    train_step(model, optimizer)
