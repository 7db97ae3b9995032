import io

import pytest
import torch

from .models import everything, mlp, rewirer, same, train_step


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def make(**options):
    model = mlp(block_size=1)
    optimizer = torch.optim.Adam(model.parameters())
    return model, optimizer, rewirer(model, optimizer, interval=2, t_end=60, **options)


@pytest.mark.parametrize("grow", ["random", "random_unfired"])
@pytest.mark.parametrize("protect", [0, 2])
def test_a_resumed_run_chooses_as_the_first_would_have(grow, protect):
    def train(model, optimizer, rewire, steps):
        reports = []
        for _ in range(steps):
            train_step(model, optimizer)
            reports.append(rewire.step())
        return reports

    model, optimizer, rewire = make(grow=grow, protect=protect)
    train(model, optimizer, rewire, 7)
    state = saved_and_loaded(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rewirer": rewire.state_dict(),
            "rng": torch.get_rng_state(),
        }
    )
    expected = train(model, optimizer, rewire, 30)

    torch.manual_seed(99)
    again, other, resumed = make(grow=grow, protect=protect)
    again.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["rewirer"])
    torch.set_rng_state(state["rng"])
    assert train(again, other, resumed, 30) == expected
    assert same(everything(model, optimizer), everything(again, other))


def test_blocks_loaded_without_the_rewirers_state_are_learnt_at_the_next_update():
    model, _, rewire = make(grow="random_unfired")
    model.load_state_dict(mlp(block_size=1).state_dict())
    old, loaded = rewire.ever_active["0"], model[0].topology.block_ids()
    assert not old.contains(loaded).all()
    rewire.step()
    rewire.step()
    assert rewire.ever_active["0"].contains(loaded).all()


def test_protected_places_are_forgotten_without_protection():
    *_, rewire = make(protect=3)
    for _ in range(8):
        rewire.step()
    state = rewire.state_dict()
    assert len(state["layers"]["0"]["recent"]) == 3
    *_, other = make()
    other.load_state_dict(state)
    assert other.state_dict()["layers"]["0"]["recent"] == []


def rename(state):
    state["layers"]["head"] = state["layers"].pop("1")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda s: s.pop("iteration"), "expected an iteration, got None"),
        (lambda s: s.update(iteration=-1), "expected an iteration, got -1"),
        (lambda s: s.pop("layers"), "layers are missing"),
        (lambda s: s.pop("generator"), "generator"),
        (lambda s: s.update(generator=torch.zeros(3)), "generator"),
        (lambda s: s["layers"].pop("0"), "the state_dict has no sparse layer '0'"),
        (rename, "the state_dict has no sparse layer '1'"),
        (lambda s: s["layers"].update(more=s["layers"]["0"]), "the model has no sparse layer 'more'"),
        (lambda s: s["layers"].update({"1": s["layers"]["0"]}), "1: .*expected 1050 places, got 1500"),
        (lambda s: s["layers"]["1"].pop("ever_active"), "1: KeyError"),
        (lambda s: s["layers"]["1"].update(recent=[[1, 2]]), "1: .*recent"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(damage, message):
    *_, rewire = make()
    for _ in range(4):
        rewire.step()
    state = saved_and_loaded(rewire.state_dict())
    damage(state)
    before = rewire.state_dict()
    with pytest.raises(ValueError, match=message):
        rewire.load_state_dict(state)
    after = rewire.state_dict()
    assert after["iteration"] == 4 and torch.equal(after["generator"], before["generator"])
    assert torch.equal(
        after["layers"]["1"]["ever_active"]["data"], before["layers"]["1"]["ever_active"]["data"]
    )
