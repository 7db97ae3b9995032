"""Small sparse models, and training without a forward: rewiring only looks at tensors."""

from __future__ import annotations

import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.rewire.journal import Journal


def mlp(density=0.2, block_size=(2, 4), sizes=(30, 50, 21)):
    """Two sparse layers, whose last blocks overhang, and a dense one."""
    a, b, c = sizes
    return nn.Sequential(
        esl.nn.SparseLinear(a, b, density=density, block_size=block_size),
        esl.nn.SparseLinear(b, c, density=density, block_size=block_size),
        nn.Linear(c, 4),
    )


def train_step(model, optimizer):
    """One optimiser step on a random gradient."""
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()


class Stepping(esl.Rewirer):
    """Takes every call for one after a step of the optimiser: what an update does needs no training."""

    def step(self):
        self._stepped = True
        return super().step()


def rewirer(model, optimizer, **options):
    """Rewires at every step and at random, unless told otherwise."""
    return Stepping(model, optimizer, **{"grow": "random", "interval": 1, "t_end": 100, **options})


def by_id(layer, tensor):
    """Each block's part of a tensor ``[nnzb, ...]``, by block id."""
    ids = layer.topology.block_ids().tolist()
    return dict(zip(ids, tensor.detach().clone(), strict=True))


def everything(model, optimizer, *followers):
    """A copy of all tensors that a rewire may change."""
    tensors = [t for m in (model, *followers) for t in [*m.parameters(), *m.buffers()]]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [
        t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)
    ]
    return [t.detach().clone() for t in tensors]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def interrupt_each_write(monkeypatch, error, run, check, when="after"):
    """Repeat ``run`` with an error before or after its 1st, 2nd, ... write until it gets through.

    ``check`` is called after each failure; returns how many there were.
    """
    write_, failures = Journal.write_, 0

    def failing(self, tensor, new):
        nonlocal writes
        writes += 1
        if writes == failures + 1 and when == "before":
            raise error
        write_(self, tensor, new)
        if writes == failures + 1 and when == "after":
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write_", failing)
        while True:
            writes = 0
            try:
                run()
                return failures
            except error:
                check()
                failures += 1
