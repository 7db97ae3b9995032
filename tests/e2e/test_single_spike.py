"""Training of networks whose neurons fire once, from the command line."""

import json
from dataclasses import replace

import pytest
import torch

from esl_sparse.checkpoint import load_checkpoint
from esl_sparse.data import load
from esl_sparse.experiments.build import build
from esl_sparse.experiments.config import TrainConfig

from .test_resume import assert_same_after_an_interrupt

SMALL = TrainConfig(
    model="single-spike",
    data="digits",
    hidden=(32,),
    density=0.3,
    block_size=(1, 1),
    epochs=2,
    batch_size=64,
    lr=5e-3,
    schedule="exponential",
    grow="gradient",
    interval=9,
)


def test_a_run(esl, tmp_path):
    run = tmp_path / "run"
    options = ("--data", "digits", "--hidden", 32, "--density", 0.3, "--block-size", "1x1", "--interval", 9)
    code, out, _ = esl(
        "train", "--model", "single-spike", *options, "--epochs", 2, "--lr", 0.01, "--run-dir", run
    )
    assert code == 0 and "single-spike 32" in out and ", T 4" not in out
    result = json.loads((run / "result.json").read_text())
    assert result["active_weights"] == round(0.3 * 64 * 32) + 320
    assert result["test_accuracy"] > 0.5
    assert load_checkpoint(run / "checkpoint.pt")["progress"]["updates"] > 0


def test_same_bits_after_an_interrupt(tmp_path):
    assert_same_after_an_interrupt(SMALL, load("digits"), 13, tmp_path)


def test_parts():
    model, _, loss, optimizer, scheduler, _ = build(
        replace(SMALL, z_scale=3.0), load("digits"), total_steps=50
    )
    x, y = load("digits").train[torch.arange(64)]
    outputs = model(x)
    assert outputs.shape == (1, 64, 10)
    plain = torch.nn.functional.cross_entropy(3 * outputs[0].clamp(min=-1e5), y)
    rest = sum(
        100 * layer.weight_sum_cost() + 1e-3 * layer.values.square().sum()
        for layer in (*model.hidden, model.readout)
    )
    torch.testing.assert_close(loss(outputs, y), plain + rest)
    (1e4 * loss(outputs, y)).backward()
    assert model.hidden[0].values.grad.norm() > 10
    optimizer.step()  # a step looks at gradients that are within the limit
    layer = model.hidden[0]
    norms = layer.topology.to_dense(layer.values.grad).norm(dim=1)
    assert norms.max() == pytest.approx(10, rel=1e-4)
    for _ in range(50):
        scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(5e-5, rel=1e-4)


def test_weights_at_the_start_sum_to_what_is_asked_for():
    means = []
    for weight_sum in (4.0, 8.0):
        model = build(replace(SMALL, weight_sum=weight_sum), load("digits"), total_steps=50).model
        means.append(model.hidden[0].weight_sums().mean().item())
        assert model.readout.weight_sums().mean().item() == pytest.approx(4.0, rel=0.2)
    assert means[0] == pytest.approx(4.0, rel=0.1) and means[1] == pytest.approx(2 * means[0], rel=1e-5)
    with pytest.raises(ValueError, match="weight_sum: expected more than 1"):
        replace(SMALL, weight_sum=1.0)


def test_masks_are_refused(esl, tmp_path):
    code, _, err = esl("train", "--model", "single-spike", "--structure", "mask", "--run-dir", tmp_path / "r")
    assert code and "no mask for single-spike networks" in err
