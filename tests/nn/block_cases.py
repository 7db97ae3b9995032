"""Spiking blocks, and what they compute: float64, by torch's own layers and the loop over time of tests/oracle.py."""

import copy
import itertools
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.functional import pack

from .. import oracle


@dataclass(frozen=True)
class Case:
    T: int = 3
    B: int = 5
    C: int = 5  # input channels
    rows: int = 6  # output channels
    H: int = 6
    W: int = 5
    linear: bool = False
    kernel: int = 3
    stride: int = 1
    padding: int | str = 1
    padding_mode: str = "zeros"
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    block_size: tuple[int, int] = (2, 4)
    density: float = 0.6
    norm: str = (
        "train"  # train, eval, plain (no gamma, no beta), batch, batch eval (no running statistics), none
    )
    momentum: float | None = 0.1
    eps: float = 1e-5
    x: str = "packed"  # packed, spikes, levels, packed levels, real, static, static spikes
    residual: str = ""  # "": none; packed, levels, real, own (the block's input)
    shortcut: str = ""  # "", conv, conv norm
    pool: str = ""  # "", or a layer and its arguments: "AvgPool2d 2", or "torch.AvgPool2d 2"
    tau: float = 0.5
    learn_tau: bool = False
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    surrogate: str = "triangle"
    width: float = 1.0
    detach_reset: bool = False

    def __str__(self):
        changed = {k: v for k, v in vars(self).items() if v != getattr(Case, k)}
        return " ".join(f"{k}={v}" for k, v in changed.items()) or "plain"

    def pool_layer(self, library=esl.nn):
        if not self.pool:
            return None
        name, *args = self.pool.split()
        library = nn if name.startswith("torch.") else library
        return getattr(library, name.removeprefix("torch."))(*map(int, args))

    def block(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        sparse = {"density": self.density, "block_size": self.block_size, "generator": generator}
        if self.linear:
            conv = esl.nn.SparseLinear(self.C, self.rows, self.bias, **sparse)
        else:
            conv = esl.nn.SparseConv2d(
                self.C, self.rows, self.kernel, self.stride, self.padding, self.dilation, self.groups, self.bias,
                self.padding_mode, **sparse,
            )  # fmt: skip
        shortcut = None
        if self.shortcut:
            if self.linear:
                shortcut = [esl.nn.SparseLinear(self.C, self.rows, **sparse)]
            else:
                shortcut = [esl.nn.SparseConv2d(self.C, self.rows, 1, self.stride, bias=self.bias, **sparse)]
            if self.shortcut == "conv norm":
                shortcut.append(self._norm(generator))
            shortcut = nn.Sequential(*shortcut)
        lif = esl.nn.LIF(
            self.tau,
            self.v_threshold,
            self.v_reset,
            self.surrogate,
            self.width,
            self.detach_reset,
            self.learn_tau,
        )
        block = esl.nn.SpikingBlock(conv, self._norm(generator), lif, self.pool_layer(), shortcut)
        return block.train("eval" not in self.norm)

    def _norm(self, generator):
        if self.norm == "none":
            return None
        norm = (nn.BatchNorm1d if self.linear else nn.BatchNorm2d)(
            self.rows,
            eps=self.eps,
            momentum=self.momentum,
            affine=self.norm != "plain",
            track_running_stats="batch" not in self.norm,
        )
        if "untracked" in self.norm:
            norm.track_running_stats = False  # as one does to freeze them
        with torch.no_grad():
            for tensor in norm.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(0.5 + torch.rand(self.rows, generator=generator))
        return norm

    def inputs(self, seed=0):
        """Float leaves: x, and the residual if it is not x."""
        generator = torch.Generator().manual_seed(seed + 1)
        shape = (self.T, self.B, self.C) if self.linear else (self.T, self.B, self.C, self.H, self.W)

        def draw(kind, shape):
            noise = torch.rand(shape, generator=generator)
            if kind in ("real", "static"):
                return 2 * noise - 0.5
            return (6 * noise - 2).floor().clamp_(0) / 4 if "levels" in kind else (noise < 0.4).float()

        leaves = [draw(self.x, shape[1:] if "static" in self.x else shape).requires_grad_()]
        if self.residual not in ("", "own"):
            if not self.shortcut:
                with torch.no_grad():
                    y = self.block().conv.to_dense()(torch.zeros(shape).flatten(0, 1))
                shape = (*shape[:2], *y.shape[1:])
            leaves.append(draw(self.residual, shape).requires_grad_())
        return leaves

    def arguments(self, leaves):
        """What the block is called with."""
        x, *residual = leaves
        if "static" in self.x:
            x = x.expand(self.T, *x.shape)
        x = pack(x) if "packed" in self.x else x
        if self.residual == "own":
            return x, x
        return x, *(pack(r) if self.residual in ("packed", "levels") else r for r in residual)


def seed_of(case):
    """The first seed whose potentials keep a distance from the threshold: there float32 and float64 agree."""
    return next(seed for seed in itertools.count() if Truth(case, seed).margin > 1e-4)


class Truth:
    """The unfused chain.

    ``grads`` by name: those of a block's parameters, ``x`` and ``residual``; ``weights``: those of dense weights.
    """

    def __init__(self, case, seed):
        block, leaves = case.block(seed), case.inputs(seed)
        self.case, self.margin = case, torch.inf
        leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
        x = leaves[0].expand(case.T, *leaves[0].shape) if "static" in case.x else leaves[0]
        residual = x if case.residual == "own" else leaves[1] if leaves[1:] else None
        named = dict(zip(("x", "residual"), leaves, strict=False))
        self.norms = {"norm": copy.deepcopy(block.norm)}
        current = self._part(block.conv, self.norms["norm"], x, "conv", "norm", named)
        if block.shortcut is not None:
            norm = self.norms["shortcut.1"] = (
                copy.deepcopy(block.shortcut[1]) if len(block.shortcut) > 1 else None
            )
            residual = self._part(block.shortcut[0], norm, residual, "shortcut.0", "shortcut.1", named)
        if residual is not None:
            current = current + residual
        tau = torch.tensor(case.tau).double()
        if case.learn_tau:
            named["lif.tau_logit"] = block.lif.tau_logit.detach().double().requires_grad_()
            tau = named["lif.tau_logit"].sigmoid()
        v = torch.full(current.shape[1:], case.v_reset or 0.0).double()
        spikes, _ = oracle.lif(
            current, v, tau, case.v_threshold, case.v_reset, self._derivative, case.detach_reset
        )
        pool = case.pool_layer(nn)
        y = spikes if pool is None else pool(spikes.flatten(0, 1)).unflatten(0, (case.T, case.B))
        self.y = y.detach()
        generator = torch.Generator().manual_seed(seed + 2)
        self.cotangent = torch.randn(y.shape, generator=generator)
        grads = torch.autograd.grad(y, list(named.values()), self.cotangent.double(), materialize_grads=True)
        self.grads = dict(zip(named, grads, strict=True))
        self.weights = {}
        for name, layer in {"conv": block.conv, "shortcut.0": block.shortcut and block.shortcut[0]}.items():
            if layer is not None:
                self.weights[name] = self.grads.pop(f"{name}.weight")
                self.grads[f"{name}.values"] = block_entries(self.weights[name], layer)

    def _part(self, conv, norm, x, conv_name, norm_name, named):
        """``norm(conv(x))``; notes the leaves."""
        dense = conv.to_dense().double()
        named.update((f"{conv_name}.{name}", p) for name, p in dense.named_parameters())
        y = dense(x.flatten(0, 1))
        if norm is not None:
            norm.double()
            named.update((f"{norm_name}.{name}", p) for name, p in norm.named_parameters())
            y = norm(y)
        return y.unflatten(0, x.shape[:2])

    def _derivative(self, d):
        edge = self.case.width / 2 if self.case.surrogate == "rectangle" else 0
        if d.numel():
            self.margin = min(
                self.margin, float(d.detach().abs().sub(edge).abs().min()), float(d.abs().min())
            )
        return oracle.SURROGATES[self.case.surrogate](d, self.case.width)


def block_entries(weight, layer, ids=None):
    """A dense weight ``[out, in, ...]`` at blocks, by default the layer's own: ``[n, bm, bn]``; zeros overhang."""
    weight = weight.reshape(*weight.shape[:2], -1)  # taps last
    groups, (bm, bn) = getattr(layer, "groups", 1), layer.block_size
    of_group, channels, taps = weight.shape[0] // groups, weight.shape[1], weight.shape[2]
    rows, cols = -(-of_group // bm), -(-channels // bn)
    ids = layer.topology.block_ids().tolist() if ids is None else ids
    entries = torch.zeros(len(ids), bm, bn, dtype=weight.dtype)
    for place, block in enumerate(ids):
        row, (tap, col) = block // (taps * cols), divmod(block % (taps * cols), cols)
        first, top = row // rows * of_group, row % rows * bm
        part = weight[first + top : first + min(top + bm, of_group), col * bn : (col + 1) * bn, tap]
        entries[place, : part.shape[0], : part.shape[1]] = part
    return entries


def run(case, seed, prepare=lambda block: block):
    """Output and gradients of the block, as :class:`Truth` names them, and the block."""
    block, leaves = case.block(seed), case.inputs(seed)
    y = prepare(block)(*case.arguments(leaves))
    y = y.unpack() if isinstance(y, esl.PackedSpikes) else y
    truth = Truth(case, seed)
    y = y.view(truth.y.shape)
    y.backward(truth.cotangent)
    grads = dict(zip(("x", "residual"), [leaf.grad for leaf in leaves], strict=False))
    return y, grads | {name: p.grad for name, p in block.named_parameters()}, block


def check(case, tolerance=2e-5, prepare=lambda block: block):
    """``prepare`` returns what is called in place of the block."""
    seed = seed_of(case)
    y, grads, block = run(case, seed, prepare)
    compare(Truth(case, seed), y, grads, block, tolerance)
    return block


def unconnected(block, name):
    """Of the bias of a convolution or linear map before a norm: the outputs without a connection."""
    owner = block.get_submodule(name.rpartition(".")[0])
    if (
        not name.endswith("bias")
        or not hasattr(owner, "to_dense")
        or not isinstance(block.norm, nn.BatchNorm2d)
    ):
        return None
    return (owner.to_dense().weight == 0).flatten(1).all(1)


EPS = 2.0**-24


def compare(truth, y, grads, block, tolerance=2e-5):
    close = partial(torch.testing.assert_close, check_dtype=False, rtol=10 * tolerance)
    if "Avg" in truth.case.pool:
        close(y, truth.y, atol=1e-6)
    else:
        assert torch.equal(y.detach().double(), truth.y)
    assert grads.keys() == truth.grads.keys()
    for name, expected in truth.grads.items():
        # All that a channel's pixels give is summed, and the sum over a batch's norm is 0.
        terms = truth.y.numel() / truth.case.rows if name.endswith("bias") else 1
        scale = max(1.0, terms**0.5, float(expected.abs().max()) if expected.numel() else 0.0)
        ours, alone = grads[name], unconnected(block, name)
        if alone is not None and alone.any():
            # Such a channel has no variance: its norm multiplies what rounding leaves of a sum of 0 by 1 / sqrt(eps).
            assert ours[alone].abs().max() <= terms**0.5 * 4 * EPS / 1e-5**0.5
            ours, expected = ours[~alone], expected[~alone]
        close(ours, expected, atol=tolerance * scale, msg=lambda m, name=name: f"{name}: {m}")
    for name, norm in truth.norms.items():
        own = block.get_submodule(name) if norm is not None else None
        for key, expected in norm.state_dict().items() if norm is not None else ():
            close(own.state_dict()[key], expected, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}")


@contextmanager
def distances(model):
    """A list that gets, at each call of a neuron layer, the least distance of a potential to its threshold."""
    found = []

    def note(lif, args, _):
        v, tau = 0.0, torch.as_tensor(lif.tau).detach()
        for current in args[0].detach():
            u = tau * v + current
            found.append(float((u - lif.v_threshold).abs().min()))
            s = (u > lif.v_threshold).to(u.dtype)
            v = u - s * lif.v_threshold if lif.v_reset is None else (1 - s) * u + s * lif.v_reset

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, esl.nn.LIF)]
    yield found
    for handle in handles:
        handle.remove()


def saved_bytes(model, x):
    """The output, and the bytes that backward keeps beside parameters and buffers, each storage once."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # The tensor is kept alive, so that no address comes twice; an expanded one may be copied by such hooks.
            kept[storage.data_ptr()] = (max(storage.nbytes(), tensor.nbytes), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = model(x)
    return y, sum(nbytes for nbytes, _ in kept.values())
