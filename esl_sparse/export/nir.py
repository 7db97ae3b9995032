"""Networks in the Neuromorphic Intermediate Representation (Pedersen et al. 2024), which chips and simulators read.

NIR has dense weights, neurons as differential equations, and no time: a graph says what happens to one sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..convert import densify
from ..nn import LIF, AdaptiveAvgPool2d, AvgPool2d
from ..nn.temporal import TemporalLinear
from ..rewire.layers import is_sparse
from .flow import Flow, Source

Shape = tuple[int, ...]


def to_nir(model: nn.Module, x: Tensor, dt: float = 1e-4) -> Any:
    """The network as a ``nir.NIRGraph``; ``nir.write(path, graph)`` saves it.

    A dense copy of the model runs once on x, in evaluation mode; what passes from layer to layer becomes the edges.
    Linear maps and convolutions have their batch norms folded in, LIF neurons become ``nir.LIF`` (``nir.IF`` at tau 1),
    sums meet at their consumer. The model itself is left as it was.

    Args:
        model: made of linear and convolutional layers (dense or sparse), batch norms behind these, ``LIF``,
            ``SpikingBlock``, average pools, dropout, reshapes and sums.
        x: an example of the model's input; of its sizes, those of time and batch do not matter.
        dt: seconds of one time step. ``u <- tau u + x`` is the forward Euler step of ``dt / (1 - tau) dv/dt = R x - v``
            with ``R = 1 / (1 - tau)``.

    Raises:
        ImportError: the package nir is not installed.
        NotImplementedError: the network does what NIR has no node for; the message names it.
        ValueError: dt is no positive number.
    """
    try:
        import nir
    except ImportError as error:
        raise ImportError("export to NIR needs the package nir: pip install nir") from error
    if not dt > 0:
        raise ValueError(f"dt: expected a positive number of seconds, got {dt!r}")
    return _Graph(nir, dt).of(_dense_copy(model), x)


def _dense_copy(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).eval()
    if is_sparse(model):
        return model.to_dense()  # type: ignore[operator]
    densify(model)
    return model


class _Graph:
    """A NIR graph in the making: nodes by name, edges between them."""

    def __init__(self, nir: Any, dt: float) -> None:
        self._nir = nir
        self._dt = dt
        self._nodes: dict[str, Any] = {}
        self._edges: list[tuple[str, str]] = []
        self._shapes: dict[str, Shape] = {}  # what leaves a node, of one sample at one step
        # The first fitting entry makes the node. None: the module passes on what it gets.
        self._makers: tuple[tuple[tuple[type[nn.Module], ...], Callable | None], ...] = (
            ((nn.Linear,), self._linear),
            ((nn.Conv1d, nn.Conv2d), self._conv),
            ((nn.BatchNorm1d, nn.BatchNorm2d), self._fold),
            ((LIF,), self._neurons),
            ((nn.AvgPool2d, AvgPool2d), self._pool),
            ((nn.AdaptiveAvgPool2d, AdaptiveAvgPool2d), self._pool_to_one),
            ((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity), None),
            ((TemporalLinear,), _no_neurons_that_fire_once),
        )

    def of(self, model: nn.Module, x: Tensor) -> Any:
        mapped = tuple(kind for kinds, _ in self._makers for kind in kinds)
        flow = Flow(mapped, self._add)
        sources = flow.run(model, x)
        if not self._nodes:
            raise NotImplementedError("the model has no layer that NIR has a node for")
        shapes = {self._shapes[source.node] for source in sources}
        if len(shapes) != 1:
            raise NotImplementedError("the model's output does not come from its layers")
        (shape,) = shapes
        self._nodes["output"] = self._nir.Output({"output": np.array(shape)})
        self._connect(sources, "output", shape)
        self._nodes["input"] = self._nir.Input({"input": np.array(self._shapes["input"])})
        return self._nir.NIRGraph(self._nodes, self._edges, metadata={"dt": self._dt})

    # Edges

    def _connect(self, sources: list[Source], name: str, shape: Shape) -> None:
        """Edges to a node that takes ``shape`` of each sample; a node between flattens where the shapes differ."""
        for source in sources:
            came = self._shapes.setdefault(source.node, shape)
            at = source.node
            if came != shape:
                if int(np.prod(came)) != int(np.prod(shape)) or len(shape) != 1:
                    raise NotImplementedError(
                        f"{name}: takes {shape} where {at} gives {came}; NIR can only flatten"
                    )
                at = f"{source.node}_flat"
                if at not in self._nodes:
                    self._nodes[at] = self._nir.Flatten({"input": np.array(came)}, 0, -1)
                    self._edges.append((source.node, at))
            self._edges.append((at, name))

    # Nodes

    def _add(self, name: str, module: nn.Module, x: Tensor, y: Tensor, sources: list[Source]) -> list[Source]:
        """The node of one call of a module: where its output comes from."""
        make = next(make for kinds, make in self._makers if isinstance(module, kinds))
        if make is None:
            return sources
        if make == self._fold:
            return self._fold(name, module, sources)
        node, takes, gives = make(name, module, x, y)
        name = name.replace(".", "_") or "layer"
        self._nodes[name] = node
        self._shapes[name] = gives
        self._connect(sources, name, takes)
        return [Source(name)]

    def _linear(self, name: str, module: nn.Linear, x: Tensor, y: Tensor) -> tuple[Any, Shape, Shape]:
        weight = _array(module.weight)
        node = (
            self._nir.Linear(weight) if module.bias is None else self._nir.Affine(weight, _array(module.bias))
        )
        return node, (module.in_features,), (module.out_features,)

    def _conv(self, name: str, module: Any, x: Tensor, y: Tensor) -> tuple[Any, Shape, Shape]:
        if module.padding_mode != "zeros":
            raise NotImplementedError(f"{name}: NIR pads with zeros, not by {module.padding_mode!r}")
        rank = len(module.kernel_size)
        takes, gives = tuple(x.shape[-1 - rank :]), tuple(y.shape[-1 - rank :])
        bias = module.weight.new_zeros(module.out_channels) if module.bias is None else module.bias
        one = rank == 1
        kind = self._nir.Conv1d if one else self._nir.Conv2d

        def plain(value: Any) -> Any:
            return value[0] if one and isinstance(value, tuple) else value

        node = kind(
            input_shape=takes[1] if one else takes[1:],
            weight=_ungrouped(_array(module.weight), module.groups),
            stride=plain(module.stride),
            padding=plain(module.padding),
            dilation=plain(module.dilation),
            groups=1,
            bias=_array(bias),
        )
        return node, takes, gives

    def _fold(self, name: str, norm: Any, sources: list[Source]) -> list[Source]:
        """A batch norm's scale and shift become part of the map before it."""
        (source,) = sources if len(sources) == 1 else (None,)
        node = None if source is None else self._nodes.get(source.node)
        if not isinstance(node, (self._nir.Linear, self._nir.Affine, self._nir.Conv1d, self._nir.Conv2d)):
            raise NotImplementedError(f"{name}: a batch norm is exported only directly behind a linear map")
        if norm.running_mean is None:
            raise NotImplementedError(f"{name}: without running statistics a batch norm is no fixed map")
        assert source is not None
        if any(start == source.node for start, _ in self._edges):
            raise NotImplementedError(f"{name}: another layer reads {source.node} before its norm")
        scale = (norm.running_var + norm.eps).rsqrt()
        shift = -norm.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        weight = node.weight * _array(scale).reshape(-1, *[1] * (node.weight.ndim - 1))
        if isinstance(node, (self._nir.Conv1d, self._nir.Conv2d)):
            node.weight, node.bias = weight, node.bias * _array(scale) + _array(shift)
        else:
            bias = getattr(node, "bias", np.float32(0)) * _array(scale) + _array(shift)
            self._nodes[source.node] = self._nir.Affine(weight, bias)
        return sources

    def _neurons(self, name: str, lif: LIF, x: Tensor, y: Tensor) -> tuple[Any, Shape, Shape]:
        if lif.v_reset is None:
            raise NotImplementedError(
                f"{name}: NIR's neurons are set to a potential when they fire; v_reset is None"
            )
        shape = tuple(x.movedim(lif.time_dim, 0).shape[2:] if lif.step_mode == "m" else x.shape[1:])
        tau = float(lif.tau)

        def full(value: float) -> np.ndarray:
            return np.full(shape, value, np.float32)

        threshold, reset = full(lif.v_threshold), full(lif.v_reset)
        if tau == 1:
            node = self._nir.IF(full(1 / self._dt), threshold, v_reset=reset)
        else:
            gain = 1 / (1 - tau)
            node = self._nir.LIF(full(self._dt * gain), full(gain), full(0), threshold, v_reset=reset)
        return node, shape, shape

    def _pool(self, name: str, pool: Any, x: Tensor, y: Tensor) -> tuple[Any, Shape, Shape]:
        if pool.ceil_mode or pool.divisor_override or not pool.count_include_pad:
            raise NotImplementedError(
                f"{name}: NIR has no ceil_mode, divisor_override or count_include_pad=False"
            )
        stride = pool.kernel_size if pool.stride is None else pool.stride
        node = self._nir.AvgPool2d(*(_pair(v) for v in (pool.kernel_size, stride, pool.padding)))
        return node, tuple(x.shape[-3:]), tuple(y.shape[-3:])

    def _pool_to_one(self, name: str, pool: nn.Module, x: Tensor, y: Tensor) -> tuple[Any, Shape, Shape]:
        size, out = np.array(x.shape[-2:]), np.array(y.shape[-2:])
        if (size % out).any():
            raise NotImplementedError(
                f"{name}: {tuple(size)} pixels to {tuple(out)} is no pool of equal windows"
            )
        node = self._nir.AvgPool2d(size // out, size // out, np.array([0, 0]))
        return node, tuple(x.shape[-3:]), tuple(y.shape[-3:])


def _no_neurons_that_fire_once(name: str, *_: object) -> Any:
    raise NotImplementedError(f"{name}: NIR has no neurons that fire once and answer by when they do")


def _ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """The same convolution without groups, zeros between them: NIR's check of types (1.0) knows no groups."""
    out, per_group = weight.shape[:2]
    whole = np.zeros((out, per_group * groups, *weight.shape[2:]), weight.dtype)
    for i, rows in enumerate(np.split(np.arange(out), groups)):
        whole[rows, i * per_group : (i + 1) * per_group] = weight[rows]
    return whole


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy().copy()


def _pair(value: Any) -> np.ndarray:
    return np.array([value, value] if isinstance(value, int) else value)
