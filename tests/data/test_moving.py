from itertools import pairwise

import numpy as np
import pytest
import torch

from esl_sparse.data import DataError, load
from esl_sparse.data.mnist import load_idx_dataset
from esl_sparse.data.moving import MovingImages, load_moving, shown_side

from .idx_files import TINY, write_tiny

LOOP = [(-2, 0), (-1, -1), (0, -2), (1, -1), (2, 0), (1, 1), (0, 2), (-1, 1), (-2, 0)]


def scene(image, size, position):
    """What the sensor sees of an image in its middle that has moved; dark around it. Brightness in float64."""
    seen = np.zeros((size, size))
    corner = (size - len(image)) // 2
    for i, row in enumerate(image):
        for j, value in enumerate(row):
            y, x = corner + i + position[1], corner + j + position[0]
            if 0 <= y < size and 0 <= x < size:
                seen[y, x] = value
    return seen + 24


@pytest.mark.parametrize(("T", "steps"), [(4, [2, 2, 2, 2]), (1, [8]), (3, [2, 3, 3])])
def test_frames_against_the_definition(T, steps):
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(28, 28)) * (rng.random((28, 28)) < 0.5)
    expected = np.zeros((T, 2, 28, 28))
    step = 0
    for t, count in enumerate(steps):
        for _ in range(count):
            before, after = (scene(image, 28, position) for position in LOOP[step : step + 2])
            expected[t, 0] += before > 1.5 * after
            expected[t, 1] += after > 1.5 * before
            step += 1
    frames = MovingImages(T, 28)(torch.from_numpy(image).to(torch.uint8)[None])
    assert frames.dtype == torch.float32
    np.testing.assert_array_equal(frames[0].numpy(), expected > 0)


@pytest.mark.parametrize(
    ("T", "size", "radius", "loops"), [(4, 28, 2, 1), (10, 28, 2, 3), (10, 48, 5, 1), (1, 5, 2, 1)]
)
def test_the_path_is_whole_loops_of_diagonal_steps(T, size, radius, loops):
    path = MovingImages(T, size).path()
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(path)]
    assert path[0] == path[-1] == (-radius, 0)
    assert len(steps) == loops * 4 * radius >= 2 * T
    assert all(abs(x) == abs(y) == 1 for x, y in steps)
    assert {abs(x) + abs(y) for x, y in path} == {radius}
    # the image never leaves a sensor that is larger than it by enough
    assert shown_side(size) == size or shown_side(size) + 2 * radius < size


def test_every_change_of_brightness():
    """Rows of two values by turns: each step takes a pixel from one to the other, and the next one back."""
    low, high = torch.triu_indices(256, 256)
    images = torch.stack([low, high, low, high, low], 1).to(torch.uint8)[:, :, None].expand(-1, 5, 5)
    middle = MovingImages(4, 5)(images)[..., 2, 2]
    fires = 2 * (high + 24) > 3 * (low + 24)
    assert middle.bool().equal(fires[:, None, None].expand(-1, 4, 2))


def test_a_bright_dot():
    """Frame 0 sees it go up and to the right by two: brighter where it comes, darker where it was."""
    image = torch.zeros(1, 36, 36, dtype=torch.uint8)
    image[0, 10, 20] = 200
    frames = MovingImages(10, 48)(image)[0]
    row, column = 10 + 6, 20 + 6 - 5
    assert frames[0, 1].nonzero().tolist() == [[row - 2, column + 2], [row - 1, column + 1]]
    assert frames[0, 0].nonzero().tolist() == [[row - 1, column + 1], [row, column]]
    assert frames.sum((1, 2, 3)).tolist() == [4] * 10


def test_still_and_silent():
    for value in (0, 255):
        image = torch.full((1, 36, 36), value, dtype=torch.uint8)
        frames = MovingImages(4, 48)(image)
        assert frames[..., 12:-12, 12:-12].sum() == 0
        assert (frames.sum() == 0) == (value == 0)
    assert MovingImages(4, 48)(image[:0]).shape == (0, 4, 2, 48, 48)


@pytest.mark.parametrize("size", [28, 33, 48])
def test_a_sample_is_the_same_in_any_batch(size, threads):
    side = shown_side(size)
    images = torch.randint(256, (37, side, side), dtype=torch.uint8)
    decode = MovingImages(4, size)
    threads(1)
    alone = torch.cat([decode(image[None]) for image in images])
    threads(2)
    order = torch.randperm(37)
    assert decode(images[order]).equal(alone[order])


@pytest.mark.parametrize(("T", "size"), [(4, 28), (6, 48)])
def test_data_set(tmp_path, T, size):
    write_tiny(tmp_path / "tiny")
    still, moving = load_idx_dataset(TINY, tmp_path), load_moving(TINY, tmp_path, T=T, size=size)
    assert (moving.name, moving.source, moving.classes) == ("dvs-tiny", still.source, 10)
    assert moving.shape == moving.test.shape == (T, 2, size, size) and moving.event and not still.event
    assert moving.train[:][1].equal(still.train[:][1])
    frames = moving.train[torch.tensor([3, 0])][0]
    assert set(frames.unique().tolist()) == {0, 1}
    assert moving.test[:][0].sum() == 0  # its images are black


@pytest.mark.parametrize(("options", "low", "high"), [({}, 0.1, 0.2), ({"T": 10, "size": 48}, 0.05, 0.12)])
def test_fashion_is_sparse(options, low, high):
    try:
        dataset = load("dvs-fashion-mnist", **options)
    except DataError as error:
        pytest.skip(str(error))
    frames, labels = dataset.train[:512]
    assert low < frames.mean() < high
    by_place = frames.mean((0, 3, 4))  # [T, 2]: no frame or polarity is empty
    assert by_place.min() > low / 2 and by_place.max() < 2 * high
    assert frames.mean((1, 2, 3, 4)).min() > 0.01
    assert len(labels.unique()) == 10
