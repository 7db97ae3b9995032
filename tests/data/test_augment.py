import pytest
import torch

from esl_sparse.data import DataError
from esl_sparse.data.augment import augment

SHAPES = {"cifar": (64, 3, 32, 32), "dvs": (64, 4, 2, 17, 20), "none": (5, 1, 8, 8)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def candidates(name, sample):
    """Every sample `[..., H, W]` that the augmentation can give, made with other functions than it uses."""
    for flip in (False, True):
        if name == "cifar":
            padded = torch.zeros(*sample.shape[:-2], *(n + 8 for n in sample.shape[-2:]))
            padded[..., 4:-4, 4:-4] = sample
            height, width = sample.shape[-2:]
            for y in range(9):
                for x in range(9):
                    crop = padded[..., y : y + height, x : x + width]
                    yield (flip, y - 4, x - 4), crop.flip(-1) if flip else crop
        else:
            flipped = sample.flip(-1) if flip else sample
            for y in range(-5, 6):
                for x in range(-5, 6):
                    yield (flip, y, x), flipped.roll((y, x), (-2, -1))


@pytest.mark.parametrize("name", ["cifar", "dvs"])
def test_every_sample_is_one_that_the_definition_allows(name):
    images = torch.rand(SHAPES[name])
    changed = augment(name)(images, seeded())
    assert changed.shape == images.shape
    seen = []
    for before, after in zip(images, changed, strict=True):
        (how,) = [how for how, candidate in candidates(name, before) if candidate.equal(after)]
        seen.append(how)
    flips, down, right = zip(*seen, strict=True)
    far = 4 if name == "cifar" else 5
    assert 16 < sum(flips) < 48
    for offsets in (down, right):  # each sample its own, over the whole range
        assert {-far, far} <= set(offsets) <= set(range(-far, far + 1))
    assert down != right


@pytest.mark.parametrize("name", SHAPES)
def test_the_generator_decides(name):
    images = torch.rand(SHAPES[name])
    before = images.clone()
    generator = seeded(3)
    first = augment(name)(images, generator)
    state = generator.get_state()
    second = augment(name)(images, generator)
    assert images.equal(before)
    assert augment(name)(images, seeded(3)).equal(first)
    generator.set_state(state)  # as from a checkpoint
    torch.manual_seed(7)
    assert augment(name)(images, generator).equal(second)
    assert first.equal(second) == (name == "none")


def test_rolled_frames_stay_binary_and_as_full():
    frames = torch.bernoulli(torch.full((9, 3, 2, 12, 12), 0.2))
    changed = augment("dvs")(frames, seeded())
    assert changed.sum((-2, -1)).equal(frames.sum((-2, -1)))
    assert set(changed.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("name", SHAPES)
def test_an_empty_batch(name):
    empty = torch.zeros(0, *SHAPES[name][1:])
    assert augment(name)(empty, seeded()).shape == empty.shape


def test_unknown_name():
    with pytest.raises(DataError, match="'mixup': expected one of none, cifar, dvs"):
        augment("mixup")
