"""What a GPU alone can show of an op: other streams, and CUDA graphs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def on_another_stream(f: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """What f returns when its kernels are not on the default stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = f()
    torch.cuda.current_stream().wait_stream(stream)
    return results


def captured(f: Callable[[], Sequence[Tensor]], replays: int = 2) -> Sequence[Tensor]:
    """What f returns when its kernels are replayed from a CUDA graph."""
    on_another_stream(f)  # warm-up
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = f()
    for result in results:
        result.fill_(torch.nan if result.is_floating_point() else -1)
    for _ in range(replays):
        graph.replay()
    return results


def assert_streams_and_graphs_change_nothing(f: Callable[[], Sequence[Tensor]]) -> None:
    expected = f()
    for run in (on_another_stream, captured):
        for actual, wanted in zip(run(f), expected, strict=True):
            assert torch.equal(actual, wanted), run.__name__
