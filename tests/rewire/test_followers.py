import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .models import by_id, everything, mlp, rewirer, same, train_step


def test_an_ema_copy_keeps_its_own_values_at_the_models_blocks():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    rewire = rewirer(model, optimizer, followers=[ema])
    for _ in range(3):
        train_step(model, optimizer)
        ema.update_parameters(model)
    before = [by_id(layer, layer.values) for layer in ema.module[:2]]
    rewire.step()
    for layer, copy, old in zip(model[:2], ema.module[:2], before, strict=True):
        assert same(list(layer.topology.index_tensors()), list(copy.topology.index_tensors()))
        new = by_id(copy, copy.values)
        assert new.keys() - old.keys()
        for i, value in new.items():
            assert torch.equal(value, old.get(i, torch.zeros_like(value)))
        assert not torch.equal(copy.values, layer.values)
    train_step(model, optimizer)
    ema.update_parameters(model)
    assert rewire.step().iteration == 2


def test_several_followers_of_other_dtypes():
    model = mlp()
    copies = [mlp(), mlp().bfloat16()]
    for copy in copies:
        copy.load_state_dict(model.state_dict())
    rewirer(model, torch.optim.SGD(model.parameters(), 0.1), followers=copies).step()
    for copy in copies:
        assert torch.equal(copy[0].values, model[0].values.to(copy[0].values.dtype))
        assert torch.equal(copy[0].topology.block_ids(), model[0].topology.block_ids())


@pytest.mark.parametrize(
    "follower, message",
    [
        (nn.Linear(3, 3), "expected 2 sparse layers like the model, got 0"),
        (mlp(sizes=(30, 50, 22)), "for 1, got .*rows=22"),
        (mlp(block_size=4), "for 0, got .*bm=4"),
    ],
)
def test_a_follower_of_another_structure(follower, message):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        rewirer(model, torch.optim.SGD(model.parameters(), 0.1), followers=[follower])


def test_the_model_does_not_follow_itself():
    model = mlp()
    with pytest.raises(ValueError, match="0 is the model's own layer"):
        rewirer(model, torch.optim.SGD(model.parameters(), 0.1), followers=[model])


def test_a_follower_with_blocks_elsewhere():
    model, other = mlp(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="the blocks of 0 stand elsewhere"):
        rewirer(model, optimizer, followers=[other])
    other.load_state_dict(model.state_dict())
    rewire = rewirer(model, optimizer, followers=[other])
    other[1].load_state_dict(mlp()[1].state_dict())
    before = everything(model, optimizer, other)
    with pytest.raises(ValueError, match="the blocks of 1 stand elsewhere"):
        rewire.step()
    assert same(before, everything(model, optimizer, other))
