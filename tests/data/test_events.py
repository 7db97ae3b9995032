import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from esl_sparse.data import DataError, events
from esl_sparse.data.events import PackedFrames, events_to_frames, pack_frames, read_aedat, read_npz, resized

from .event_files import HEADER, aedat_bytes, random_events


def test_aedat_bit_by_bit(tmp_path):
    """Row 5, column 9, brighter, then row 127, column 0, darker; bit 15 and above mean nothing."""
    path = tmp_path / "a.aedat"
    words = [(127 - 9) << 8 | (127 - 5) << 1, 1000, 0x8000 | 127 << 8 | 0 << 1 | 1, 1007]
    path.write_bytes(HEADER + struct.pack(">4I", *words))
    t, x, y, p = read_aedat(path)
    assert (t.tolist(), x.tolist(), y.tolist(), p.tolist()) == ([0, 7], [9, 0], [5, 127], [1, 0])


def test_aedat_events_come_back(tmp_path):
    events = random_events(0, 500)
    (tmp_path / "a.aedat").write_bytes(aedat_bytes(*events))
    found = read_aedat(tmp_path / "a.aedat")
    np.testing.assert_array_equal(found.t, events[0] - events[0][0])
    for a, b in zip(found[1:], events[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_clock_may_pass_its_end_and_tick_back(tmp_path):
    stamps = [2**32 - 2, 2**32 - 1, 1, 0, 5]
    (tmp_path / "a.aedat").write_bytes(aedat_bytes(stamps, [0] * 5, [0] * 5, [0] * 5))
    assert read_aedat(tmp_path / "a.aedat").t.tolist() == [0, 1, 3, 2, 7]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (aedat_bytes([1], [2], [3], [0])[:-3], r"is truncated: its 5 bytes are no whole number"),
        (b"", "expected a line #!AER-DAT2.0, found no version"),
        (b"# a comment without an end", "found no version"),
        (b"PK\x03\x04", "found no version"),
        (HEADER.replace(b"2.0", b"3.1"), "found version 3.1"),
        (b"#!AER-DAT4.0\r\n" + bytes(32), "found version 4.0"),
    ],
)
def test_bad_aedat(tmp_path, raw, says):
    path = tmp_path / "a.aedat"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=says) as error:
        read_aedat(path)
    assert str(path) in str(error.value)


def test_npz(tmp_path):
    events = random_events(1)
    np.savez_compressed(tmp_path / "a.npz", **dict(zip("txyp", events, strict=True)))
    for a, b in zip(read_npz(tmp_path / "a.npz"), events, strict=True):
        np.testing.assert_array_equal(a, b)


def npy(shape, content=b""):
    """An array's file whose header says what it likes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize("shape", [(2**40,), (2**62,), (2**40, 2**40), (-1,), (3,)])
def test_an_npz_that_promises_more_than_it_holds(tmp_path, shape):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in "txyp":
            archive.writestr(f"{name}.npy", npy(shape, bytes(8)))
    with pytest.raises(DataError, match=r"is not an npz file of arrays t, x, y, p"):
        read_npz(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{name: np.zeros(1 << 16, np.int64) for name in "txyp"})
    monkeypatch.setattr(events, "_LARGEST", 1 << 20)
    with pytest.raises(DataError, match=r"it unpacks to 2,\d\d\d,\d\d\d bytes, at most 1,048,576 are read"):
        read_npz(path)


def test_bad_npz(tmp_path):
    path = tmp_path / "a.npz"
    good = tmp_path / "good.npz"
    np.savez_compressed(good, **dict(zip("txyp", random_events(1), strict=True)))
    objects = tmp_path / "objects.npz"
    np.savez(objects, t=np.array([{}], dtype=object), x=0, y=0, p=0)
    lacking = tmp_path / "lacking.npz"
    np.savez(lacking, t=np.arange(3))
    array = tmp_path / "array.npy"
    np.save(array, np.arange(3))
    damaged = bytearray(good.read_bytes())
    damaged[60] ^= 255
    for raw in (
        b"",
        b"#!AER-DAT2.0\r\n",
        good.read_bytes()[:-40],
        damaged,
        *(p.read_bytes() for p in (objects, lacking, array)),
    ):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"a\.npz is not an npz file of arrays t, x, y, p: "):
            read_npz(path)


def test_frames_by_hand():
    """Seven events on a sensor of 3x3, three frames of two; the last event is left over."""
    t = np.arange(7)
    x = np.array([0, 1, 2, 2, 0, 0, 1])
    y = np.array([0, 2, 1, 1, 2, 2, 1])
    p = np.array([1, 0, 1, 1, 0, 1, 1])
    expected = np.zeros((3, 2, 3, 3), bool)
    for frame, polarity, row, column in (
        (0, 1, 0, 0),
        (0, 0, 2, 1),
        (1, 1, 1, 2),
        (2, 0, 2, 0),
        (2, 1, 2, 0),
    ):
        expected[frame, polarity, row, column] = True
    np.testing.assert_array_equal(events_to_frames(t, x, y, p, T=3, size=3, sensor=3), expected)
    shuffled = np.random.default_rng(0).permutation(7)
    again = events_to_frames(*(values[shuffled] for values in (t, x, y, p)), T=3, size=3, sensor=3)
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize(("n", "T"), [(5000, 10), (997, 7), (64, 1), (3, 5), (0, 2)])
def test_frames_of_random_events(n, T):
    """Against a loop over events."""
    t, x, y, p = random_events(n, n)
    expected = np.zeros((T, 2, 128, 128), bool)
    for i in range(n // T * T):
        expected[i // (n // T), p[i], y[i], x[i]] = True
    found = events_to_frames(t, x, y, p, T=T, size=128)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(events_to_frames(t, x, y, p, T=T, size=48), resized(expected, 48))


@pytest.mark.parametrize(("n", "size"), [(16, 6), (8, 5), (3, 5), (9, 3), (7, 7), (5, 1)])
@pytest.mark.parametrize("density", [0, 0.02, 0.3, 0.8, 1])
def test_resized_frames_set_what_has_the_largest_share(n, size, density):
    frames = np.random.default_rng(0).random((50, 2, n, n)) < density
    found = resized(frames, size)
    assert found.dtype == np.bool_ and found.shape == (50, 2, size, size)
    fine = frames.repeat(size, -1).repeat(size, -2)  # both resolutions divide it
    share = fine.reshape(50, 2, size, n, size, n).sum((3, 5))
    assert (share[found] > 0).all()
    for places, chosen, count in zip(
        share.reshape(100, -1), found.reshape(100, -1), frames.sum((-2, -1)).flat, strict=True
    ):
        wanted = -(-int(count) * size * size // (n * n))
        least = places[chosen].min(initial=n * n + 1)
        assert (places[~chosen] < least).all()  # with all that share alike
        assert (places > least).sum() < wanted <= chosen.sum() if count else not chosen.any()


@pytest.mark.parametrize(
    ("which", "value", "says"),
    [
        (1, 128, "x: expected 0 to 127, got .* to 128"),
        (2, -1, "y: expected 0 to 127, got -1 to"),
        (3, 2, "p: expected 0 to 1, got 0 to 2"),
    ],
)
def test_events_outside_the_sensor(which, value, says):
    events = [values.copy() for values in random_events(0)]
    events[which][17] = value
    with pytest.raises(ValueError, match=says):
        events_to_frames(*events, T=4, size=32)


def test_arrays_that_do_not_fit():
    t, x, y, p = random_events(0)
    with pytest.raises(ValueError, match=r"y: expected an array of 60 numbers, got shape \(59,\)"):
        events_to_frames(t, x, y[1:], p, T=4, size=32)
    with pytest.raises(TypeError, match="x: expected integers, got float64"):
        events_to_frames(t, x / 2, y, p, T=4, size=32)
    with pytest.raises(ValueError, match="T: expected at least 1, got 0"):
        events_to_frames(t, x, y, p, T=0, size=32)


@pytest.mark.parametrize("shape", [(10, 2, 48, 48), (3, 2, 5, 7), (1, 2, 1, 1)])
def test_packed_frames_come_back(shape):
    frames = np.random.default_rng(0).random((6, *shape)) < 0.3
    packed = torch.from_numpy(np.stack([pack_frames(sample) for sample in frames]))
    assert packed.dtype == torch.uint8
    assert packed.shape == (6, -(-int(np.prod(shape)) // 8))
    found = PackedFrames(shape)(packed)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), frames)
    assert PackedFrames(shape)(packed[:0]).shape == (0, *shape)
