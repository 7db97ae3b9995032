"""Rules by gradient inside the training loops that people write."""

import copy
import gc
import io
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import esl_sparse as esl

from .models import by_id, everything, same

RULES = ("gradient", "momentum", "momentum_neuron")


def network(seed=0, **options):
    torch.manual_seed(seed)
    return nn.Sequential(
        esl.nn.SparseLinear(24, 40, density=0.2, block_size=(2, 4), **options),
        nn.ReLU(),
        esl.nn.SparseLinear(40, 8, density=0.4, block_size=1, **options),
    )


def batches(n, size=16):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 24, generator=generator), torch.randint(8, (size,), generator=generator))
        for _ in range(n)
    ]


def rewirer(model, optimizer, **options):
    generator = torch.Generator().manual_seed(1)
    return esl.Rewirer(
        model,
        optimizer,
        **{"grow": "gradient", "interval": 5, "t_end": 40, "generator": generator, **options},
    )


def plain(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def train(model, n=10, step=plain, optimizer=None, **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    rewire = rewirer(model, optimizer, **options)
    reports = []
    for x, y in batches(n):
        step(model, optimizer, x, y)
        reports.append(rewire.step())
    return [report for report in reports if report]


def topologies(model):
    return [layer.topology.block_ids().tolist() for layer in model if hasattr(layer, "topology")]


def same_training(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return topologies(model) == topologies(other) and all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


# The same gradient by other ways


def accumulated(model, optimizer, x, y):
    optimizer.zero_grad()
    for part in (slice(0, 5), slice(5, 16)):
        (F.cross_entropy(model(x[part]), y[part], reduction="sum") / len(y)).backward()
    optimizer.step()


def checkpointed(model, optimizer, x, y, use_reentrant):
    optimizer.zero_grad()
    x = x.requires_grad_() if use_reentrant else x
    F.cross_entropy(checkpoint(model, x, use_reentrant=use_reentrant), y).backward()
    optimizer.step()


def evaluated_between(model, optimizer, x, y):
    optimizer.zero_grad()
    with torch.no_grad():
        model(torch.randn(3, 24))
    loss = F.cross_entropy(model(x), y)
    model(torch.randn(3, 24))  # its output goes nowhere
    loss.backward()
    optimizer.step()


def closed(model, optimizer, x, y):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)


def scaled(model, optimizer, x, y):
    """As GradScaler does: the loss is scaled, gradients are scaled back before the step."""
    optimizer.zero_grad()
    (F.cross_entropy(model(x), y) * 1024).backward()
    for param in model.parameters():
        param.grad /= 1024
    optimizer.step()


def zeroed_early(model, optimizer, x, y):
    plain(model, optimizer, x, y)
    optimizer.zero_grad()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "step",
    [
        accumulated,
        partial(checkpointed, use_reentrant=False),
        partial(checkpointed, use_reentrant=True),
        evaluated_between,
        closed,
        scaled,
        zeroed_early,
    ],
)
def test_the_way_to_a_gradient_does_not_matter(rule, step):
    model, other = network(), network()
    plainly, otherwise = train(model, grow=rule), train(other, step=step, grow=rule)
    assert same_training(model, other)
    assert [r.layers for r in plainly] == [r.layers for r in otherwise]
    assert all(layer.note == "" for r in otherwise for layer in r.layers)


def test_clipping_weighs_a_step_in_the_average_as_it_weighs_it_in_training():
    """One step of huge gradient, clipped to nothing, must not decide; without clipping it does."""

    def step(model, optimizer, x, y, clip):
        optimizer.zero_grad()
        huge = 1e4 if step.calls == 3 else 1.0
        step.calls += 1
        (F.cross_entropy(model(x), y) * huge).backward()
        if clip:
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            for param in model.parameters():
                param.grad *= min(1.0, 1e-3 / float(norm))
        optimizer.step()

    rule = esl.GROW_RULES["momentum"]
    watches = []
    for clip in (False, True):
        step.calls = 0
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        rewire = rewirer(model, optimizer, grow=rule, interval=30, t_end=90)
        for x, y in batches(14):
            step(model, optimizer, x, y, clip)
            rewire.step()
        watches.append(rewire._watches["2"])
    raw, clipped = (watch._average.abs().max() for watch in watches)
    assert raw > 0
    # Every clipped step has the same norm, so none weighs more than (1 - beta) of the clipping norm.
    assert clipped < 1e-3


# Steps that do not count


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_by_grad_scaler_is_not_counted(rule, fused):
    model, other = network(), network()

    def train_with_overflow(model, overflow_at):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000, backoff_factor=0.5)
        rewire = rewirer(model, optimizer, grow=rule, interval=3, t_end=30)
        reports = []
        for i, (x, y) in enumerate(batches(9)):
            if i in overflow_at:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x * 1e30), y) * 1e30).backward()
                before = everything(model, optimizer)
                scaler.step(optimizer)
                scaler.update()
                before_iteration = rewire.iteration
                assert rewire.step() is None and rewire.iteration == before_iteration
                for param in model.parameters():
                    param.grad = None
                assert [t.shape for t in before]  # nothing but the gradients had changed
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
            reports.append(rewire.step())
        return [report for report in reports if report]

    plainly, skipping = train_with_overflow(model, ()), train_with_overflow(other, (0, 2, 3, 5))
    assert [r.layers for r in plainly] == [r.layers for r in skipping] and len(plainly) == 3
    assert same_training(model, other)


def test_without_an_optimizer_step_nothing_is_counted():
    model = network()
    rewire = rewirer(model, torch.optim.SGD(model.parameters(), 0.1), interval=1)
    assert [rewire.step() for _ in range(4)] == [None] * 4 and rewire.iteration == 0


# Layers without a gradient


def test_a_frozen_layer_is_not_watched():
    model = network()
    model[2].values.requires_grad_(False)
    reports = train(model)
    assert [[layer.name for layer in report.layers] for report in reports] == [["0"], ["0"]]


def test_a_layer_that_thaws_in_the_window_grows_at_random_and_says_so():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewire = rewirer(model, optimizer, grow="momentum")
    model[2].values.requires_grad_(False)
    rewire.load_state_dict(rewire.state_dict() | {"watches": {}})  # the window begins
    for i, (x, y) in enumerate(batches(5)):
        model[2].values.requires_grad_(i > 2)
        plain(model, optimizer, x, y)
        report = rewire.step()
    assert [layer.note[:6] for layer in report.layers] == ["", "frozen"] and report.layers[1].pruned > 0


@pytest.mark.parametrize("grow", ["gradient", "momentum"])
def test_layers_may_grow_all_that_was_pruned_anywhere(grow):
    """One threshold over all layers, and nearly all that goes is given to one of them: its candidates suffice."""
    torch.manual_seed(0)
    model = nn.Sequential(
        esl.nn.SparseLinear(24, 40, density=0.2, block_size=2),
        nn.ReLU(),
        esl.nn.SparseLinear(40, 8, density=0.9, block_size=2),
    )
    with torch.no_grad():
        model[2].values.mul_(1e-2)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    reports = train(
        model, 10, optimizer=optimizer, grow=grow, prune="global_magnitude", redistribute="magnitude"
    )
    assert len(reports) == 2 and all(layer.note == "" for report in reports for layer in report.layers)


@pytest.mark.parametrize("rule", RULES)
def test_a_silent_layer_grows_at_random_and_says_so(rule):
    model = nn.Sequential(network()[0], nn.Threshold(1e9, 0.0), network()[2])
    reports = train(model, grow=rule)
    assert all(report.layers[0].note.startswith("silent") for report in reports)
    assert all(report.layers[0].grown > 0 for report in reports)
    assert "silent" in str(reports[0])


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_that_no_gradient_reaches_grows_at_random_and_says_so(rule):
    model = nn.ModuleDict({"used": network(), "unused": esl.nn.SparseLinear(24, 40, block_size=1)})

    def step(model, optimizer, x, y):
        plain(model["used"], optimizer, x, y)

    reports = train(model, step=step, grow=rule)
    notes = {layer.name: layer.note for layer in reports[-1].layers}
    assert notes["used.0"] == "" and "no gradient reached it" in notes["unused"]


def test_more_calls_than_expected_are_noticed():
    """Places were scored inside the first backward; a second call comes too late to be added."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewire = rewirer(model, optimizer, interval=3)
    for i, (x, y) in enumerate(batches(3)):
        (accumulated if i == 2 else plain)(model, optimizer, x, y)
        report = rewire.step()
    assert "called 2 times" in report.layers[0].note and report.layers[0].pruned > 0


@pytest.mark.parametrize("accumulate_at", range(8))
@pytest.mark.parametrize("rule", ["momentum", "momentum_neuron"])
def test_more_calls_than_expected_in_a_long_window(rule, accumulate_at):
    """In the window's first step they put it off by a step; later they are added like any others."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    rewire = rewirer(model, optimizer, interval=8, t_end=40, grow=replace(esl.GROW_RULES[rule], window=6))
    gradients = []
    for i, (x, y) in enumerate(batches(8)):
        (accumulated if i == accumulate_at else plain)(model, optimizer, x, y)
        gradients.append(model[2].values.grad.clone())
        if i == 7:
            average = rewire._watches["2"]._active_average
        report = rewire.step()
    assert [layer.note for layer in report.layers] == ["", ""]
    first, expected = 3 if accumulate_at == 2 else 2, torch.zeros_like(gradients[0])
    for gradient in gradients[first:]:
        expected.mul_(0.9).add_(gradient, alpha=0.1)
    torch.testing.assert_close(average, expected)


# Damaged gradients


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gradients_that_are_not_finite_are_named_and_nothing_changes(rule, bad):
    """Only places without a weight see the damage: the trained weights stay finite."""
    layer = esl.nn.SparseLinear(8, 8, density=0.5, block_size=1)
    with torch.no_grad():
        layer.topology.assign_(torch.arange(64).view(8, 8)[:, :4].reshape(-1))  # inputs 0 to 3
    optimizer = torch.optim.Adam(layer.parameters())
    rewire = rewirer(layer, optimizer, grow=rule, interval=3)
    for i in range(3):
        optimizer.zero_grad()
        x = torch.randn(5, 8)
        if i == 2 or rule != "gradient":
            x[0, 6] = bad
        out = layer(x)
        out.backward(torch.ones_like(out))
        optimizer.step()
        before = everything(layer, optimizer)
        if i < 2:
            rewire.step()
    with pytest.raises(ValueError, match="the gradients of 8 blocks are NaN or infinite"):
        rewire.step()
    with pytest.raises(ValueError, match="8 blocks"):  # nothing has been seen since
        rewire.step()
    assert same(before, everything(layer, optimizer)) and rewire.iteration == 2
    optimizer.zero_grad()
    layer(torch.randn(5, 8)).sum().backward()
    optimizer.step()
    assert (
        rewire.step().layers[0].note == "" and rewire.iteration == 3
    )  # the step after it is judged by itself


# Compiled, copied, stored


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_run_eagerly_while_they_are_watched(whole):
    gc.collect()  # rewirers of other tests
    model, other = network(), network()
    compiling = partial(torch.compile, fullgraph=True, backend="aot_eager")
    compiled = compiling(other) if whole else nn.Sequential(*[compiling(layer) for layer in other])

    def step(_, optimizer, x, y):
        plain(compiled, optimizer, x, y)

    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    plainly, otherwise = train(model, 12), train(other, 12, step=step)
    assert [r.layers for r in plainly] == [r.layers for r in otherwise]
    assert same_training(model, other)
    assert graphs["unique_graphs"] > before  # outside the windows it was compiled
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_compilation_goes_on_when_the_last_of_several_rewirers_lets_it():
    gc.collect()
    torch.compile(lambda x: x, backend="eager")(torch.zeros(1))
    stance = lambda: torch._dynamo.eval_frame._stance.stance  # noqa: E731
    first, second = network(), network()
    a = rewirer(first, torch.optim.SGD(first.parameters(), 0.1), interval=1)
    b = rewirer(second, torch.optim.SGD(second.parameters(), 0.1), interval=1)
    assert stance() == "force_eager"
    del a
    assert stance() == "force_eager"
    del b
    assert stance() == "default"


def test_hooks_are_gone_when_no_step_needs_them():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewire = rewirer(model, optimizer, grow="momentum", interval=100, t_end=300)
    hooked = []
    for x, y in batches(100):
        hooked.append(bool(model[0]._forward_hooks))
        plain(model, optimizer, x, y)
        rewire.step()
    assert hooked == [False] * 79 + [True] * 21  # 20 steps of the window, and one that counts calls
    assert not model[0]._forward_hooks
    other = rewirer(model, optimizer, interval=1)
    assert model[0]._forward_hooks
    del other
    assert not model[0]._forward_hooks and len(optimizer._optimizer_step_post_hooks) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_made_while_watched_is_not_watched(copied):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewire = rewirer(model, optimizer, interval=1)
    twin = copied(model)
    out = twin(torch.randn(4, 24))
    out.sum().backward()
    assert not any(watch.calls for watch in rewire._watches.values())
    plain(model, optimizer, *batches(1)[0])
    assert rewire.step().layers[0].note == ""
    file = io.BytesIO()
    torch.save(model, file)


def test_blocks_loaded_in_the_window_are_noticed():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewire = rewirer(model, optimizer, grow="momentum")
    for i, (x, y) in enumerate(batches(5)):
        if i == 3:
            model.load_state_dict(network(seed=9).state_dict())
        plain(model, optimizer, x, y)
        report = rewire.step()
    assert "blocks were changed" in report.layers[0].note


# State


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("interval", [1, 4, 25])
@pytest.mark.parametrize("stop", [1, 6, 13])
def test_a_run_resumed_anywhere_continues_exactly(rule, interval, stop):
    def make():
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        return model, optimizer, rewirer(model, optimizer, grow=rule, interval=interval, t_end=80)

    def go(parts, data):
        for x, y in data:
            plain(*parts[:2], x, y)
            parts[2].step()

    data = batches(29)
    first = make()
    go(first, data[:stop])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    go(first, data[stop:])
    file.seek(0)
    again = make()
    go(again, data[:2])  # it was in use already
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    go(again, data[stop:])
    assert same(everything(*first[:2]), everything(*again[:2]))
    assert torch.equal(first[2].generator.get_state(), again[2].generator.get_state())


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda w: w.pop("seed"), "seed"),
        (lambda w: w.update(seed="x"), "expected a seed"),
        (lambda w: w.update(ids=w["ids"].flip(0)), "sorted and unique"),
        (lambda w: w.update(ids=w["ids"] + 10**6), "outside"),
        (lambda w: w.update(ids=[1, 2]), "expected ids"),
        (lambda w: w.update(average=w["average"][1:]), "expected average of shape"),
        (lambda w: w.update(active_average=None), "expected active_average"),
        (lambda w: w.pop("nonfinite"), "nonfinite"),
    ],
)
def test_a_damaged_window_changes_nothing(damage, message):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewire = rewirer(model, optimizer, grow="momentum", interval=10)
    for x, y in batches(5):
        plain(model, optimizer, x, y)
        rewire.step()
    state = rewire.state_dict()
    broken = copy.deepcopy(state)
    broken["iteration"] = 4
    damage(broken["watches"]["2"])
    watches = dict(rewire._watches)
    with pytest.raises(ValueError, match=message):
        rewire.load_state_dict(broken)
    assert rewire.iteration == 5 and rewire._watches == watches
    assert len(model[2]._forward_hooks) == 1


def test_values_move_with_their_blocks():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    rewire = rewirer(model, optimizer, grow="momentum", interval=2)
    for x, y in batches(6):
        plain(model, optimizer, x, y)
        before = [by_id(layer, layer.values) for layer in (model[0], model[2])]
        if rewire.step():
            for layer, old in zip((model[0], model[2]), before, strict=True):
                for i, value in by_id(layer, layer.values).items():
                    assert torch.equal(value, old.get(i, torch.zeros_like(value)))
