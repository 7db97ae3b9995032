"""Every kind of layer with a weight is in the report: sparse, or dense and why."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import esl_sparse as esl


class Wrapped(torch.Tensor):
    """Stands for DTensor and the like: a weight that is no plain tensor."""


def of_subclass():
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.randn(8, 8).as_subclass(Wrapped))
    return layer


def computed(layer):
    return layer, "its weight is computed from other parameters"


def no(layer):
    return layer, f"there is no block-sparse {type(layer).__name__}"


LAZY = "it has no weight yet: run the model once before"
KINDS = {
    "linear": (nn.Linear(16, 16), ""),
    "conv1d": (nn.Conv1d(16, 16, 3), ""),
    "conv2d": (nn.Conv2d(16, 16, 3), ""),
    "up1": no(nn.ConvTranspose1d(4, 4, 3)),
    "up2": no(nn.ConvTranspose2d(4, 4, 3)),
    "up3": no(nn.ConvTranspose3d(4, 4, 3)),
    "conv3d": no(nn.Conv3d(4, 4, 3)),
    "rnn": no(nn.RNN(8, 8)),
    "lstm": no(nn.LSTM(8, 8)),
    "gru": no(nn.GRU(8, 8)),
    "rnn_cell": no(nn.RNNCell(8, 8)),
    "lstm_cell": no(nn.LSTMCell(8, 8)),
    "gru_cell": no(nn.GRUCell(8, 8)),
    "attention": no(nn.MultiheadAttention(8, 2)),
    "bilinear": no(nn.Bilinear(8, 8, 4)),
    "embedding": no(nn.Embedding(10, 8)),
    "bag": no(nn.EmbeddingBag(10, 8)),
    "lazy": (nn.LazyLinear(8), LAZY),
    "lazy_conv": (nn.LazyConv2d(8, 3), LAZY),
    "weight_norm": computed(parametrizations.weight_norm(nn.Linear(8, 8))),
    "spectral_norm": computed(parametrizations.spectral_norm(nn.Conv2d(8, 8, 3))),
    "orthogonal": computed(parametrizations.orthogonal(nn.Linear(8, 8))),
    "subclass": (of_subclass(), "its weight is a Wrapped"),
    "complex": (nn.Linear(8, 8, dtype=torch.complex64), "its weight is torch.complex64"),
    "empty": (nn.utils.skip_init(nn.Linear, 8, 0), "its weight has no entries"),
}


def test_each_kind_of_layer_is_named():
    model = nn.ModuleDict({name: layer for name, (layer, _) in KINDS.items()})
    before = dict(model.named_children())
    report = esl.sparsify(model, 0.3, distribution="uniform")
    reasons = {x.name: x.reason for x in report.layers if x.name in KINDS}
    assert reasons == {name: reason for name, (_, reason) in KINDS.items()}
    assert {name for name, layer in model.named_children() if layer is not before[name]} == {
        "linear",
        "conv1d",
        "conv2d",
    }
    other = {x.name: x.reason for x in report.layers if x.name not in KINDS}
    assert other == {"attention.out_proj": "MultiheadAttention reads its weight directly"}
    assert "lazy " in str(report) and LAZY in str(report)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantiz")
def test_quantised_layers():
    from torch.ao.quantization import quantize_dynamic

    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch was built without fbgemm")
    model = nn.Sequential(nn.Linear(16, 12), nn.LSTM(12, 8), nn.Linear(8, 8))
    model = quantize_dynamic(model, {nn.LSTM, "0"})
    rows = [(x.name, x.weights, x.reason) for x in esl.sparsify(model, 0.3, distribution="uniform").layers]
    assert rows == [
        ("0", 192, "its weight is quantised"),
        ("1", 4 * 8 * (12 + 8), "its weight is quantised"),
        ("2", 64, ""),
    ]


def test_tied_weights_stay_dense_and_tied():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    reasons = [x.reason for x in esl.sparsify(model, 0.5, distribution="uniform").layers]
    assert reasons == ["its weight is shared with another module"] * 2 + [""]
    assert model["a"].weight is model["b"].weight


def test_a_lazy_layer_that_has_run_becomes_sparse():
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(16))
    model(torch.randn(2, 16))
    assert all(x.converted for x in esl.sparsify(model, 0.3, distribution="uniform").layers)


@pytest.mark.parametrize("convert", [esl.sparsify, esl.densify])
def test_a_wrapped_model_is_refused(convert, tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 8)))
        with pytest.raises(ValueError, match="DistributedDataParallel holds its parameters already"):
            convert(model)
    finally:
        torch.distributed.destroy_process_group()
