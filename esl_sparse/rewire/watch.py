"""Following the gradients of places that have no weight, for as long as an update needs it."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..ops.select import TopK
from ..topology import BlockLayout, BlockTopology, check_block_ids, index_from_block_ids, row_indices
from .blocks import Candidates
from .grow import GradientRule
from .host import magnitude
from .layers import GradientLayer, SparseLayer, stamp
from .ranks import Ranks
from .sorted_ids import contains_sorted


@dataclass
class _Scan:
    """What one look at all places found.

    Attributes:
        topology: of the candidates.
        nonfinite: scores that are NaN or infinite.
        score: float32 ``[c]``, the candidates'. active_score: float32 ``[nnzb]``, of the blocks that there are. Empty
            where only what follows them counts.
    """

    topology: BlockTopology
    nonfinite: int
    score: Tensor
    active_score: Tensor


class Watch:
    """Finds one layer's candidates in the first step of a window and follows their gradients to its end.

    Args:
        grow: at most so many blocks will be grown.
        length: steps of the window; 1: the candidates' scores in the only step are the result.
        several: whether the layer is called more than once in a step; None: not known. Where it is not, places are
            scored inside the backward; else every call is kept until the step is complete, because magnitudes do not
            add.
        ranks: the processes whose gradients are averaged, None: this one alone. Of several, each keeps its calls until
            the step is complete, and gradients are averaged before their magnitude is taken.
    """

    def __init__(
        self,
        name: str,
        layer: SparseLayer,
        rule: GradientRule,
        grow: int,
        length: int,
        seed: int,
        several: bool | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.name = name
        self.layer = cast(GradientLayer, layer)
        self.rule = rule
        self.grow = grow
        self.length = length
        self.seed = seed
        self.several = several
        self._ranks = ranks
        self.calls = 0  # in the present step
        self._kept: list[Any] = []
        self._new: _Scan | None = None  # of the present step
        self._sum: Tensor | None = None  # the candidates' gradient in the present step, before any clipping
        self._raw_norm: Tensor | None = None  # of the values' gradient, likewise
        self._raw: Tensor | None = None  # this rank's part of it, not yet averaged
        self._found: _Scan | None = None
        self._average: Tensor | None = None  # [c, bm, bn]
        self._active_average: Tensor | None = None  # [nnzb, bm, bn]
        self._index = stamp(layer)
        self._is_stale = False  # an update with what was found has failed, and training may go on
        self._tap = _Tap(self.layer, self._call, keep_input=True)
        self._norm_hook = None
        if length > 1:
            self._norm_hook = layer.values.register_post_accumulate_grad_hook(_NormHook(self))

    def close(self) -> None:
        self._tap.close()
        if self._norm_hook is not None:
            self._norm_hook.remove()

    @property
    def nbytes(self) -> int:
        """Bytes held now: what calls of the present step left behind, candidates and averages."""
        found = (
            [] if self._found is None else [self._found.topology, self._found.score, self._found.active_score]
        )
        tree = [self._kept, found, self._sum, self._raw, self._average, self._active_average]
        # A carrier is an element that looks like a panel.
        storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    # During backward

    def _call(self, seen: Any, grad: Tensor) -> None:
        if self._is_stale:
            self._restart()
        call = self.layer.call(seen, grad.detach())
        self.calls += 1
        if self._found is not None:
            self._add(self._found, call)
        elif self.several is False and self._ranks is None:
            if self.calls == 1:
                self._new = self._scan([call])
            else:  # too late to be added: what the first call gave is dropped
                self._new = self._sum = None
        else:
            self._kept.append(call)

    def _restart(self) -> None:
        """Begin the window anew, with the present step."""
        self.discard()
        self._found = self._average = self._active_average = None
        self._index = stamp(self.layer)
        self._is_stale = False

    def _scan(self, calls: list[Any]) -> _Scan:
        layer = self.layer
        topology, layout = layer.topology, layer.topology.layout
        device, nnzb = layer.values.device, topology.nnzb
        bounds = topology.crow_indices.cpu()
        top = TopK(self.rule.followed(self.grow, nnzb, layout.blocks - nnzb), self.seed, device)
        active_score = torch.empty(nnzb, device=device)
        strips = (
            layer.block_scores(calls) if self._ranks is None else self._averaged_scores(calls, self._ranks)
        )
        for first, scores in strips:
            crow = topology.crow_indices[first : first + len(scores) + 1]
            low, high = int(bounds[first]), int(bounds[first + len(scores)])
            here = row_indices(crow, high - low).mul_(layout.col_blocks).add_(topology.col_indices[low:high])
            scores = scores.view(-1)
            active_score[low:high] = scores[here]
            scores[here] = -torch.inf  # not to be chosen
            top.push(scores, first * layout.col_blocks)
        ids, score = top.result()
        nonfinite = top.nonfinite + int((~active_score.isfinite()).sum())
        del top
        scan = _Scan(_row_index(ids, layout), nonfinite, score, active_score)
        if self.length > 1:
            scan.score, scan.active_score = score.new_empty(0), score.new_empty(0)
            del ids, score, active_score
            for call in calls:
                self._add(scan, call)
        return scan

    def _averaged_scores(self, calls: list[Any], ranks: Ranks) -> Iterator[tuple[int, Tensor]]:
        """As the layer's ``block_scores``, of the mean gradient over the ranks: a strip of it at a time is dense."""
        layout, values = self.layer.topology.layout, self.layer.values
        block, per_row = values.shape[1:], layout.col_blocks
        rows = max(1, _STRIP_BYTES // (4 * per_row * layout.bm * layout.bn))
        for first in range(0, layout.row_blocks, rows):
            count = min(rows, layout.row_blocks - first)
            ids = torch.arange(first * per_row, (first + count) * per_row, device=values.device)
            strip = _row_index(ids, layout)
            gradient = torch.zeros(len(ids), *block, device=values.device)
            for call in calls:
                gradient.add_(self.layer.gradient_at(strip, call))
            yield first, _block_means(ranks.mean_(gradient), strip).view(count, per_row)

    def _add(self, scan: _Scan, call: Any) -> None:
        gradient = self.layer.gradient_at(scan.topology, call)
        self._sum = gradient if self._sum is None else self._sum.add_(gradient)

    def _average_over(self, ranks: Ranks, found: _Scan) -> None:
        """This rank's parts of the candidates' gradient and the values' become the mean of all ranks'."""
        values = self.layer.values
        if self._sum is None:
            self._sum = torch.zeros(found.topology.nnzb, *values.shape[1:], device=values.device)
        self._sum = ranks.mean_(self._sum.float())
        raw = torch.zeros_like(values, dtype=torch.float32) if self._raw is None else self._raw.float()
        self._raw_norm = _norm(ranks.mean_(raw))

    # After the optimiser's step, or instead of it

    def commit(self) -> None:
        """The step counts: its gradients enter the window."""
        _used_here([self._kept, self._sum, self._raw, self._raw_norm])
        if self._kept if self._ranks is None else self._is_called(self._ranks):
            self._new = self._scan(self._kept)
        if self._found is None:
            self._found = self._new
            # Called more often than in the step before: the window begins with the next step, if there is one.
            self.several = None if self._found is None and self.calls > 1 else self.several
        if self._found is not None and self.length > 1:
            if self._ranks is not None:
                self._average_over(self._ranks, self._found)
            self._extend(self._found)
        self.discard(keep_calls=True)

    def _is_called(self, ranks: Ranks) -> bool:
        """Whether places are to be scored, with what some rank has kept."""
        return self._found is None and ranks.any([bool(self._kept)])[0]

    def failed(self) -> None:
        """The update failed: it may be repeated with what was found, but a further training step begins anew."""
        self._is_stale = True

    def discard(self, keep_calls: bool = False) -> None:
        """Forget the present step."""
        self._kept, self._new, self._sum, self._raw_norm, self._raw = [], None, None, None, None
        if not keep_calls:
            self.calls = 0

    def _extend(self, found: _Scan) -> None:
        beta, layer = self.rule.beta, self.layer
        grad = layer.values.grad
        if self._average is None or self._active_average is None:
            block = layer.values.shape[1:]
            self._average = torch.zeros(found.topology.nnzb, *block, device=layer.values.device)
            self._active_average = torch.zeros(layer.topology.nnzb, *block, device=layer.values.device)
        self._average.mul_(beta)
        self._active_average.mul_(beta)
        if self._sum is not None:
            self._average.addcmul_(self._sum, self._scale(grad), value=1 - beta)
        if grad is not None:
            self._active_average.add_(grad, alpha=1 - beta)

    def _scale(self, grad: Tensor | None) -> Tensor:
        """What happened to gradients between backward and step: clipping, loss scaling. A tensor: nobody waits."""
        if grad is None or self._raw_norm is None:
            return torch.ones((), device=self.layer.values.device)
        return (_norm(grad) / self._raw_norm).nan_to_num_(1.0, 1.0)

    # At the update

    def sizes(self) -> list[Tensor]:
        """The largest gradient of an absent place and of a block, each a tensor of one element; [] if there is none."""
        found = self._found
        if found is None:
            return []
        if self._average is None or self._active_average is None:  # a window of one step
            return [magnitude(found.score), magnitude(found.active_score)]
        return [magnitude(self._average), magnitude(self._active_average)]

    def candidates(
        self, pruned: Tensor, pruned_ids: Tensor, sizes: Sequence[float]
    ) -> tuple[Candidates | None, str]:
        """What the window found, with the blocks just pruned (their positions and ids); or None, and why.

        ``sizes`` are the values of ``sizes()``.

        Raises:
            ValueError: NaN or infinite gradients.
        """
        found, layer = self._found, self.layer
        if found is None and self.calls > 1:
            return None, f"called {self.calls} times in the step, once in the one before: grown at random"
        if found is None:
            return None, "no gradient reached it: grown at random"
        if self._index != stamp(layer):
            return None, "its blocks were changed while its gradient was followed: grown at random"
        topology = layer.topology
        nonfinite = found.nonfinite
        if self._average is None or self._active_average is None:  # a window of one step
            score, of_pruned = found.score, found.active_score[pruned]
        else:
            score = _block_means(self._average, found.topology)
            of_pruned = _block_means(self._active_average[pruned], topology, pruned_ids)
            if not all(map(math.isfinite, sizes)):
                nonfinite += _nonfinite(self._average) + _nonfinite(self._active_average)
        if nonfinite:
            raise ValueError(f"{self.name}: the gradients of {nonfinite} blocks are NaN or infinite")
        if not any(sizes):
            return None, "silent, all gradients are 0: grown at random"

        def row_mean() -> Tensor:
            average = self._active_average
            of_active = found.active_score if average is None else average
            sums = _row_sums(score, found.topology).add_(_row_sums(of_active, topology))
            number = found.topology.crow_indices.diff() + topology.crow_indices.diff()
            return sums / number.clamp_(min=1)

        ids = torch.cat([found.topology.block_ids(), pruned_ids])
        return Candidates(ids, torch.cat([score, of_pruned]), found.topology.nnzb, row_mean), ""

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"seed": self.seed, "several": self.several}
        if self._found is not None:
            state |= {"ids": self._found.topology.block_ids(), "nonfinite": self._found.nonfinite}
            state |= {"average": self._average, "active_average": self._active_average}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict`` after checking all of it; raises ``KeyError``, ``TypeError``, ``ValueError``."""
        seed, several, found = state["seed"], state["several"], None
        if type(seed) is not int or not 0 <= seed < 1 << 62 or not isinstance(several, (bool, type(None))):
            raise ValueError(f"watch: expected a seed and a flag, got {seed!r} and {several!r}")
        if state.keys() - {"seed", "several"}:
            topology, device = self.layer.topology, self.layer.values.device
            ids, nonfinite = state["ids"], state["nonfinite"]
            if not isinstance(ids, Tensor) or type(nonfinite) is not int or nonfinite < 0:
                raise ValueError("watch: expected ids and a number")
            check_block_ids(ids, topology.layout)
            ids = ids.to(device)
            if bool(contains_sorted(topology.block_ids(), ids).any()):
                raise ValueError("watch: candidates are active; load the model's state first")
            block = tuple(self.layer.values.shape[1:])
            averages = []
            for name, n in (("average", ids.numel()), ("active_average", topology.nnzb)):
                tensor = state[name]
                if not isinstance(tensor, Tensor) or tuple(tensor.shape) != (n, *block):
                    got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                    raise ValueError(f"watch: expected {name} of shape {(n, *block)}, got {got}")
                averages.append(tensor.to(device, torch.float32, copy=True))
            nothing = torch.empty(0, device=device)
            found = _Scan(_row_index(ids, topology.layout), nonfinite, nothing, nothing)
        self.seed, self.several, self._found = seed, several, found
        self._average, self._active_average = averages if found is not None else (None, None)
        self._index = stamp(self.layer)
        self.discard()


class CallCounter:
    """Counts how often a layer is called in a step."""

    def __init__(self, layer: SparseLayer) -> None:
        self.calls = 0
        self._tap = _Tap(cast(GradientLayer, layer), self._call, keep_input=False)

    def _call(self, seen: Any, grad: Tensor) -> None:
        self.calls += 1

    def close(self) -> None:
        self._tap.close()


class _Tap:
    """Hands every call's input and output gradient to ``receive``, as long as its owner lives.

    A copy of the layer (deepcopy, pickle) carries a tap that does nothing.
    """

    def __init__(
        self, layer: GradientLayer, receive: Callable[[Any, Tensor], None], keep_input: bool
    ) -> None:
        hook = _Hook(weakref.ref(layer), weakref.WeakMethod(receive), keep_input)
        self._handle = cast(nn.Module, layer).register_forward_hook(hook, with_kwargs=True)

    def close(self) -> None:
        self._handle.remove()


class _Hook:
    def __init__(
        self, layer: Callable[[], Any] = lambda: None, receive: Any = lambda: None, keep_input: bool = False
    ) -> None:
        self._layer, self._receive, self._keep_input = layer, receive, keep_input

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()

    def __call__(self, module: Any, args: tuple, kwargs: dict, output: Tensor) -> None:
        if module is not self._layer() or not output.requires_grad:
            return
        with torch.no_grad():
            seen = module.seen_input(*args, **kwargs) if self._keep_input else None

        def receive(grad: Tensor) -> None:
            if (owner := self._receive()) is not None:
                with torch.no_grad():
                    owner(seen, grad)

        output.register_hook(receive)


class _NormHook:
    """Notes the norm of the values' gradient as backward left it."""

    def __init__(self, watch: Watch) -> None:
        self._watch = weakref.ref(watch)

    def __call__(self, values: Tensor) -> None:
        watch = self._watch()
        if watch is not None and values.grad is not None:
            if watch._ranks is None:
                watch._raw_norm = _norm(values.grad)
            else:
                watch._raw = values.grad.clone()


class EagerSteps:
    """While on, ``torch.compile`` steps aside: hooks see every call, and nothing is compiled twice.

    Of several that are on, the last one to be switched off lets it go on.
    """

    _on: ClassVar[set[int]] = set()
    _stance: ClassVar[Any] = None

    def switch(self, on: bool) -> None:
        cls = EagerSteps
        if on and "torch._dynamo" in sys.modules:
            cls._on.add(id(self))
            if cls._stance is None:
                cls._stance = torch.compiler.set_stance("force_eager")
        elif not on and id(self) in cls._on:
            cls._on.remove(id(self))
            if not cls._on:
                cls._stance.__exit__(None, None, None)
                cls._stance = None


def _used_here(tree: Any) -> None:
    """Tensors of forward and backward are used on the present stream: their memory is not given away before."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.is_cuda:
            leaf.record_stream(torch.cuda.current_stream(leaf.device))


def _row_index(ids: Tensor, layout: BlockLayout) -> BlockTopology:
    """A topology without its column order, which gradients of values do not need."""
    crow, col = index_from_block_ids(ids, layout)
    nothing = col.new_empty(0)
    return BlockTopology(layout, crow, col, nothing, nothing, nothing)


def _row_sums(scores: Tensor, topology: BlockTopology) -> Tensor:
    """Sums by row block of scores ``[nnzb]``, or of the mean magnitudes of ``[nnzb, bm, bn]``."""
    crow, n = topology.crow_indices, topology.layout.row_blocks
    sums = torch.zeros(n, device=scores.device)
    at_once = max(1, n * _AT_ONCE // max(1, topology.nnzb))  # rows
    for first in range(0, n, at_once):
        some = crow[first : first + at_once + 1]
        low, high = int(some[0]), int(some[-1])
        here, rows = scores[low:high], row_indices(some, high - low)
        if here.dim() > 1:
            ids = rows.add(first).mul_(topology.layout.col_blocks).add_(topology.col_indices[low:high])
            here = _block_means(here, topology, ids)
        sums[first : first + at_once].index_add_(0, rows, here)
    return sums


_AT_ONCE = 1 << 16  # blocks
_STRIP_BYTES = 1 << 22  # of dense gradient


def _norm(grad: Tensor) -> Tensor:
    return torch.linalg.vector_norm(
        grad, dtype=torch.float64 if grad.dtype == torch.float64 else torch.float32
    )


def _nonfinite(average: Tensor) -> int:
    """Blocks of ``[n, bm, bn]`` with an entry that is NaN or infinite."""
    return int((~average.isfinite()).flatten(1).any(1).sum())


def _block_means(entries: Tensor, topology: BlockTopology, ids: Tensor | None = None) -> Tensor:
    """Mean |entry| inside the weight, ``[n, bm, bn]`` -> ``[n]``, of all blocks or of those with these ids."""
    if entries.shape[1:] == (1, 1):
        return entries.view(-1).abs()
    sums, layout = torch.linalg.vector_norm(entries, 1, (1, 2)), topology.layout
    if not layout.overhangs:
        return sums.div_(layout.bm * layout.bn)
    return sums.div_(layout.block_extent(topology.block_ids() if ids is None else ids))
