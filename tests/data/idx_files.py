"""Small idx files and data sets made of them."""

import gzip
import hashlib
import struct

import torch

from esl_sparse.data.mnist import IdxFiles


def idx_bytes(tensor: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, tensor.dim()]) + struct.pack(f">{tensor.dim()}I", *tensor.shape)
    return header + tensor.numpy().tobytes()


CONTENT = {
    "train-images-idx3-ubyte": idx_bytes(torch.full((20, 4, 4), 255, dtype=torch.uint8)),
    "train-labels-idx1-ubyte": idx_bytes(torch.arange(20, dtype=torch.uint8) % 10),
    "t10k-images-idx3-ubyte": idx_bytes(torch.zeros(10, 4, 4, dtype=torch.uint8)),
    "t10k-labels-idx1-ubyte": idx_bytes(torch.arange(10, dtype=torch.uint8)),
}
TINY = IdxFiles(
    name="tiny",
    torchvision_name="TINY",
    mirrors=("http://first.invalid/", "http://second.invalid/"),
    sha256={name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()},
)


def write_tiny(folder, packed=True):
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder
