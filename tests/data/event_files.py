"""Small recordings in the published format, and a data set made of them."""

import struct

import numpy as np

from esl_sparse.data.dvs_cifar10 import Recordings

HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n"
TINY = Recordings(name="tiny-dvs", home="https://tiny.invalid", classes=("cat", "dog", "ship"), per_class=10)


def aedat_bytes(t, x, y, p, header=HEADER):
    """Events of a DVS128: row and column are counted from the far end, the last bit is set where it got darker."""
    pairs = zip(t, x, y, p, strict=True)
    return header + b"".join(
        struct.pack(">II", (127 - int(x)) << 8 | (127 - int(y)) << 1 | (1 - int(p)), int(t) & 0xFFFFFFFF)
        for t, x, y, p in pairs
    )


def random_events(seed, n=60):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(128, size=(2, n))
    return np.cumsum(rng.integers(3, size=n)), x, y, rng.integers(2, size=n)


def write_recordings(folder, files=TINY, suffix=".aedat"):
    """Recording k holds `random_events(k)`."""
    for k, name in enumerate(files.names()):
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npz":
            np.savez_compressed(path, **dict(zip("txyp", random_events(k), strict=True)))
        else:
            path.write_bytes(aedat_bytes(*random_events(k)))
    return folder
