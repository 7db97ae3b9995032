"""``torch.export`` takes every layer; ONNX has no operator for them and says which one it lacks."""

import io

import pytest
import torch
from torch import nn

import esl_sparse as esl

from ..nn.test_drop_in import frames, network
from ..nn.test_torch_func import sparse


@pytest.fixture
def net():
    """In evaluation mode, with statistics of its own."""
    net = network()
    for _ in range(2):
        net(frames())
    return net.eval()


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_network_computes_the_same(net, strict):
    x = frames()
    expected = net(x)
    assert expected.abs().max() > 0
    program = torch.export.export(net, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), expected)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file)
    assert again.state_dict.keys() >= net.state_dict().keys()
    y = frames()
    torch.testing.assert_close(again.module()(y), net(y))
    operators = {str(node.target) for node in again.graph.nodes if node.op == "call_function"}
    assert not any("sparse_bsr" in name or name.startswith("aten.convolution") for name in operators)


def test_batches_of_any_size():
    """Of layers on floats; lanes of packed spikes have a fixed number."""
    net = nn.Sequential(sparse(esl.nn.SparseLinear, 11, 7), nn.ReLU(), sparse(esl.nn.SparseLinear, 7, 7))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (torch.randn(4, 11),), dynamic_shapes=({0: batch},))
    for n in (2, 4, 37):
        x = torch.randn(n, 11)
        torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.slow  # onnxscript alone takes seconds to import
def test_onnx_names_what_it_lacks_and_takes_what_is_dense_again(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    net, x = nn.Sequential(sparse(esl.nn.SparseLinear, 11, 7), nn.ReLU()).eval(), torch.randn(4, 11)
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"No ONNX function found .*esl_sparse\.linear"):
        torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    esl.densify(net)
    torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    assert (tmp_path / "net.onnx").stat().st_size > 0
