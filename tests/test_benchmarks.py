"""Each benchmark runs on tiny sizes and stores what the plots are drawn from; no figure is looked at."""

import json
import sys

import pytest
import torch

import esl_sparse as esl
from esl_sparse import _native

pytest.importorskip("psutil", reason="needs the extra [bench]")

from benchmarks import cases, conv, impossible, linear, memory, networks, report, rewire, timing, training
from benchmarks.run import BENCHMARKS, command_line, main, parse


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


SLOW = (
    "rewire",
    "overlap",
    "impossible",
    "scan",
    "showcase",
    "gpu",
)  # their small variants take 10 s and more


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in BENCHMARKS])
def name(request):
    if request.param == "kernels" and not _native.available():
        pytest.skip(_native.reason())
    if request.param == "showcase":
        pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    return request.param


def test_quick_run_stores_valid_json(name, results, capsys):
    sweep = {"memory": ["--sweep"], "gpu": ["--device", "cpu"]}.get(name, [])
    path = results / f"{name}.json"
    main([name, "--quick", *sweep, "--output", str(path)])
    stored = json.loads(path.read_text())
    assert stored["benchmark"] == name
    assert stored["command"] == " ".join(["python -m benchmarks.run", name, "--quick", *sweep])
    assert stored["machine"]["torch"] and stored["machine"]["threads"] >= 1
    assert stored["method"] and stored["targets"]
    assert stored["rows"] and not any("error" in row for row in stored["rows"])
    assert "target: " in capsys.readouterr().out


def test_memory_of_a_network(results):
    path = results / "memory-vggsnn.json"
    main(["memory", "--model", "vggsnn", "--quick", "--sweep", "--output", str(path)])
    stored = json.loads(path.read_text())
    assert stored["benchmark"] == "memory-vggsnn"
    dense, *ours = stored["rows"]
    assert dense["provider"] == "dense" and len(ours) == 2
    assert all(row["saved"] < dense["saved"] / 5 for row in ours)
    assert len({row["saved"] for row in ours}) == 1
    assert ours[1]["weights"] < 0.2 * ours[0]["weights"]


def test_plots_are_drawn_from_stored_results(results):
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    for name in ("linear", "lif", "memory"):
        if not (results / f"{name}.json").exists():
            main([name, "--quick", "--output", str(results / f"{name}.json")])
    plot.main(["--results", str(results)])
    drawn = [name for name in ("memory-vggsnn", "showcase") if (results / f"{name}.json").exists()]
    for name in ("linear", "lif", "memory", "overview", *drawn):
        assert (results / f"{name}.png").stat().st_size > 10_000


def test_every_provider_is_measured_in_every_mode(results, capsys):
    main(["linear", "--quick", "--output", str(results / "all.json")])
    rows = report.load("all", results)["rows"]
    cells = {(row["provider"], row["mode"], row["density"]) for row in rows}
    assert len(cells) == len(rows) == len(linear.LINEAR) * len(linear.MODES) * 2


def test_what_loses_says_so():
    row = {"provider": "4x4", "ms": [9, 10.0, 11], "speedup": [0.7, 0.8, 0.9], "runs": 9}
    assert linear.cell(row) == "10 0.8x LOSES"
    assert linear.cell(row | {"speedup": [1, 1.25, 2], "runs": 1}) == "10* 1.2x"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.1, 4.0), (1.0, 0.25)], (0.316, "=")),
        ([(0.5, 1.6), (0.1, 8.0), (1.0, 0.8)], (0.8, "=")),
        ([(0.1, 4.0), (0.5, 2.0)], (0.5, ">=")),
        ([(0.1, 0.4), (0.5, 0.2)], (0.1, "<")),
    ],
)
def test_break_even(points, expected):
    density, sign = linear.break_even(points)
    assert (round(density, 3), sign) == expected


def test_without_spikingjelly_the_rest_runs_and_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "spikingjelly", None)
    for name in [name for name in sys.modules if name.startswith("spikingjelly.")]:
        monkeypatch.delitem(sys.modules, name)
    main(["saved", "--quick"])
    out = capsys.readouterr().out
    assert "SpikingJelly     left out: " in out and "pip install --no-deps spikingjelly==" in out
    assert "ERK 0.1" in out
    with pytest.raises(SystemExit, match="pip install --no-deps spikingjelly=="):
        main(["showcase", "--quick"])


@pytest.mark.parametrize("case", [*cases.QUICK_VGGSNN_CASES, *cases.QUICK_RESNET19_CASES], ids=str)
def test_a_network_is_the_same_in_plain_torch(case):
    torch.manual_seed(1)
    model = networks.dense(case)
    x, _ = networks.batch(case)
    expected = model(x)
    grads = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    plain = networks.plain(model)
    assert not any(isinstance(module, (esl.nn.LIF, esl.nn.SpikingBlock)) for module in plain.modules())
    found = plain(x)
    torch.testing.assert_close(found, expected)
    again = torch.autograd.grad(found.square().sum(), list(plain.parameters()))
    torch.testing.assert_close(sum(g.abs().sum() for g in again), sum(g.abs().sum() for g in grads))


def test_multiply_adds():
    case = cases.VGGSNN_CASES[0]
    positions = networks.positions(case)
    assert positions["blocks.0.conv"] == positions["blocks.1.conv"] == 48 * 48
    assert positions["blocks.7.conv"] == 36 and positions["readout.linear"] == 1
    full = networks.multiply_adds(networks.dense(case), positions)
    assert (
        full
        == 9 * (2304 * (2 + 128) * 64 + 576 * (128 + 256) * 256 + 144 * 768 * 512 + 36 * 1024 * 512) + 46080
    )
    thin = networks.multiply_adds(networks.PROVIDERS["uniform 0.1"](networks.dense(case)), positions)
    assert abs(thin / full - 0.1) < 1e-3


def test_a_step_is_broken_down():
    (case,) = cases.QUICK_VGGSNN_CASES
    rows = training.parts(case, "ERK 0.1", training.Step(case, "ERK 0.1", 0), 2)
    ops = {row["op"]: row for row in rows}
    assert {"conv forward", "conv grad-input", "conv grad-values", "norm_lif", "pool", "pack"} <= ops.keys()
    assert ops["conv forward"]["calls"] == ops["norm_lif backward"]["calls"] == 8
    assert ops["conv grad-input"]["calls"] == 7  # the frames want none
    assert sum(row["share"] for row in rows) == pytest.approx(2.0, abs=0.05)  # the step itself is a row


def test_the_fastest_of_two_is_the_baseline():
    timings = {
        "a": timing.Timing([2.0, 4.0, 2.0], [2.0, 4.0, 2.0]),
        "b": timing.Timing([1.0, 2.0, 1.0], [2.0, 4.0, 2.0]),
        "once": timing.Timing([5.0], [2.0]),
    }
    name, beside = timing.beside_fastest(timings, ("a", "b"))
    assert name == "b"
    assert [beside[key].speedup.median for key in ("a", "b", "once")] == [0.5, 1.0, 0.2]
    _, beside = timing.beside_fastest(timings, ["once"])
    assert [beside[key].speedup.median for key in ("a", "b", "once")] == [2.5, 5.0, 1.0]


def test_ratios_are_taken_inside_a_round():
    # The machine halves its speed between the rounds: the ratio does not change.
    timing_ = timing.Timing(seconds=[1.0, 2.0, 4.0], baseline=[3.0, 6.0, 12.0])
    assert timing_.speedup == (3.0, 3.0, 3.0)
    assert timing_.cost.median == pytest.approx(1 / 3)


def test_the_hopeless_is_timed_once(monkeypatch):
    calls = {"base": 0, "slow": 0}
    clock = iter(range(10**6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock) * 0.1)

    def run(name, ticks):
        def body():
            calls[name] += 1
            for _ in range(ticks):
                next(clock)

        return body

    measured = timing.measure({"base": run("base", 1), "slow": run("slow", 50)}, "base", rounds=7)
    assert calls == {"base": 9, "slow": 2}
    assert len(measured["base"].seconds) == 7 and len(measured["slow"].seconds) == 1


def test_filters_and_what_is_stored():
    assert parse(["linear"]).output == report.RESULTS / "linear.json"
    assert parse(["linear", "--density", "0.1"]).output is None
    assert parse(["linear", "--full"]).output is None
    assert parse(["memory"]).output is None
    assert parse(["memory", "--sweep", "--model", "vggsnn"]).output == report.RESULTS / "memory-vggsnn.json"
    assert parse(["conv"]).output == report.RESULTS / "conv.json"
    assert parse(["conv", "--block", "8"]).output is None
    chosen = conv.selected(parse(["conv", "--network", "VGGSNN", "--case", "256-256", "--lanes", "128"]))
    assert [(str(case), block) for case, block in chosen] == [
        ("VGGSNN 256-256 3x3, 24x24, 128 lanes", block) for block in (4, 1, 8)
    ]
    assert parse(["vggsnn", "--provider", "torch"]).output is None
    args = parse(["linear", "--case", "784-800", "--lanes", "512", "--density", "0.1", "0.05"])
    assert {(case.shape, case.lanes) for case, _ in linear.selected(args)} == {("784-800", 512)}
    assert all(densities == [0.1, 0.05] for _, densities in linear.selected(args))
    with pytest.raises(SystemExit, match="no case"):
        linear.selected(parse(["linear", "--case", "1-1"]))
    assert parse(["rewire"]).output == report.RESULTS / "rewire.json"
    assert parse(["rewire", "--rule", "random"]).output is None
    args = parse(["rewire", "--neurons", "4096", "--block", "1"])
    assert [(case.neurons, case.block, case.density) for case in rewire.selected(args)] == [
        (4096, 1, 0.1),
        (4096, 1, 0.01),
    ]
    assert (
        command_line(["lif", "--output", "x.json", "--seed", "1"]) == "python -m benchmarks.run lif --seed 1"
    )


def test_a_child_that_dies_is_reported():
    args = parse(["memory", "--quick"])
    row = memory.measure("no such provider", 0.1, memory.cases.QUICK_MEMORY_CASE, args)
    assert "KeyError" in row["error"]
    row = training.peak(cases.QUICK_VGGSNN_CASES[0], "no such provider", parse(["vggsnn"]))
    assert "KeyError" in row["error"]
    row = rewire.measured(rewire.cases.QUICK_REWIRE_CASES[0], "no such rule", parse(["rewire", "--quick"]))
    assert "KeyError" in row["error"]


def rewire_row(**fields):
    row = {"rule": "gradient", "state": 100e6, "blocks": 10**6, "block": 4, "overhead": 0.005}
    return {**row, "update_torch": 120e6, "update_rss": 150e6, **fields}


def test_an_update_over_a_target_says_so():
    row = rewire_row(of_dense_backward=[0.5, 0.9, 1.1])
    assert rewire.extra(row) == 1.5 and rewire.misses(row) == []
    assert rewire.misses(row | {"update_torch": 201e6}) == ["memory"]
    assert rewire.misses(row | {"update_rss": 201e6}) == ["memory"]
    assert rewire.misses(row | {"of_dense_backward": [0.9, 1.1, 2]}) == ["dense backward"]
    assert rewire.misses(row | {"overhead": 0.011}) == ["training"]
    assert rewire.misses(row | {"overhead": 0.011, "rule": "momentum"}) == []
    assert rewire.misses(row | {"overhead": 1.1, "rule": "DeepR"}) == []


def test_resident_memory_does_not_count_for_a_small_layer():
    assert rewire.extra(rewire_row(state=10e6, update_torch=15e6, update_rss=1e9)) == 1.5


def test_record_limits():
    # A bit a block at density d is 1 / (8 d) bytes an active block; each has 100 bytes of state.
    assert rewire.record_limits([rewire_row()]) == {"4x4": 1 / 1600}


def test_allocations_of_an_update_are_seen():
    training = rewire.Training(rewire.RewireCase(64, 1, 0.5, 2, 2), "momentum")
    rewire.timed_cycle(training, times := rewire.Times())
    assert [len(part) for part in (times.plain, times.scan, times.tracked, times.update)] == [3, 1, 19, 1]
    peaks = rewire.memory_cycle(training)
    assert peaks["update_torch"] > 2 * 4 * 64 * 32  # both averages are held


def test_phases_of_one_name_are_merged():
    phases = [
        {"phase": name, "peak": peak, "after": peak - 1, "grown": 0, "seconds": [1.0 * peak]}
        for name, peak in (("step", 3), ("update", 7), ("step", 5))
    ]
    assert impossible.merged(phases) == [
        {"phase": "step", "peak": 5, "after": 4, "seconds": [3.0, 5.0]},
        {"phase": "update", "peak": 7, "after": 6, "seconds": [7.0]},
    ]
