import math

import pytest

from esl_sparse.rewire import erdos_renyi, erk, exact_counts, uniform

VGGSNN = [(64, 2, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3), (512, 256, 3, 3)]
VGGSNN += [(512, 512, 3, 3)] * 3 + [(10, 4608)]
RESNET19 = [(128, 3, 3, 3)] + [(128, 128, 3, 3)] * 6 + [(256, 128, 3, 3)] + [(256, 256, 3, 3)] * 5
RESNET19 += [(512, 256, 3, 3)] + [(512, 512, 3, 3)] * 3 + [(256, 512), (10, 256)]
MLP = [(800, 784), (10, 800)]


def overall(shapes, densities):
    sizes = [math.prod(s) for s in shapes]
    return sum(p * n for p, n in zip(densities, sizes, strict=True)) / sum(sizes)


@pytest.mark.parametrize(
    "shapes, density, expected",
    [
        (VGGSNN, 0.1, [1.0, 0.475, 0.234, 0.155, 0.116, 0.077, 0.077, 0.077, 1.0]),
        (VGGSNN, 0.01, [0.60, 0.026, 0.013, 0.008, 0.006, 0.004, 0.004, 0.004, 0.96]),
        (RESNET19, 0.5, [1.0] * 8 + [0.67] * 5 + [0.50] + [0.33] * 3 + [1.0, 1.0]),
    ],
)
def test_erk_of_the_papers_networks(shapes, density, expected):
    densities = erk(shapes, density)
    assert densities == pytest.approx(expected, abs=0.005)
    assert overall(shapes, densities) == pytest.approx(density, rel=1e-9)


def test_erdos_renyi_by_epsilon_is_equation_1():
    p = erdos_renyi([(800, 784)], epsilon=60)[0]
    assert p == pytest.approx(60 * (800 + 784) / (800 * 784))
    assert exact_counts([p], [800 * 784]) == [95_040]  # what Table 1 of the paper decodes to
    assert erdos_renyi([(10, 20)], epsilon=1000) == [1.0]


def test_kernel_dimensions_count_in_erk_only():
    assert erk(MLP, 0.1) == erdos_renyi(MLP, 0.1)
    conv = [(64, 32, 3, 3), (64, 32)]
    assert erdos_renyi(conv, epsilon=5)[0] == erdos_renyi(conv, epsilon=5)[1]
    assert erk(conv, epsilon=5)[0] < erk(conv, epsilon=5)[1]


@pytest.mark.parametrize("share", [erk, erdos_renyi, uniform])
@pytest.mark.parametrize("density", [0.0, 0.003, 0.1, 0.37, 0.9, 1.0])
@pytest.mark.parametrize("shapes", [VGGSNN, RESNET19, MLP, [(1, 1)], [(3, 5)]])
def test_overall_density_is_met_exactly(share, density, shapes):
    densities = share(shapes, density)
    sizes = [math.prod(s) for s in shapes]
    counts = exact_counts(densities, sizes)
    assert all(0 <= p <= 1 for p in densities)
    assert sum(counts) == pytest.approx(density * sum(sizes), abs=0.5 + 1e-6)
    assert all(0 <= c <= n and abs(c - p * n) < 1 for c, p, n in zip(counts, densities, sizes, strict=True))


def test_no_layers():
    assert erk([], 0.1) == erdos_renyi([], 0.1) == uniform([], 0.1) == exact_counts([], []) == []


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: erk(MLP), "either density or epsilon"),
        (lambda: erk(MLP, 0.1, epsilon=3), "either density or epsilon"),
        (lambda: erk(MLP, 1.5), "0 to 1, got 1.5"),
        (lambda: erdos_renyi(MLP, epsilon=-1), "at least 0, got -1"),
        (lambda: uniform([(5,)], 0.1), r"two or more positive sizes, got \(5,\)"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
