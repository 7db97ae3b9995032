"""One rank: what DistributedDataParallel adds changes nothing."""

import pytest
import torch
from torch import nn

import esl_sparse as esl

from .test_rewire import network

pytestmark = pytest.mark.gpu


@pytest.fixture
def one_rank(tmp_path):
    if not torch.distributed.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def train(model, device, grow):
    optimizer = torch.optim.SGD(model.parameters(), 2.0**-12)
    generator = torch.Generator().manual_seed(1)
    rewirer = esl.Rewirer(model, optimizer, grow=grow, interval=2, t_end=12, generator=generator)
    torch.manual_seed(2)
    reports = []
    for _ in range(6):
        x, grad = (torch.randint(-3, 4, (32, n)).float().to(device) for n in (96, 40))
        optimizer.zero_grad()
        model(x).backward(grad)
        optimizer.step()
        reports.append(rewirer.step())
    assert any(layer.grown for report in reports if report is not None for layer in report.layers)


@pytest.mark.parametrize("grow", ["gradient", "momentum", "random"])
def test_training_and_rewiring(untuned, one_rank, grow):
    plain, wrapped = network().cuda(), network().cuda()
    train(plain, "cuda", grow)
    train(nn.parallel.DistributedDataParallel(wrapped), "cuda", grow)
    for (name, a), b in zip(plain.state_dict().items(), wrapped.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
