"""Small CIFAR sets in the published formats: binary records, pickles of Python 2, archives."""

import hashlib
import io
import struct
import tarfile
from dataclasses import replace

import torch

from esl_sparse.data.cifar import CIFAR10, CIFAR100

COUNTS = {"train": 5, "train.bin": 5}  # images of a file; 4 of any other


def tiny(files):
    """The data set with few images in each file, and without the archives' digests."""

    def few(names):
        return {name: COUNTS.get(name, 4) for name in names}

    versions = tuple(replace(v, md5="", train=few(v.train), test=few(v.test)) for v in files.versions)
    return replace(files, versions=versions)


TINY = {"cifar10": tiny(CIFAR10), "cifar100": tiny(CIFAR100)}


def samples(files, name):
    """Random images uint8 `[N, 3, 32, 32]` and labels of a file; the same for the versions' files of that name."""
    stem = name.removesuffix(".bin")
    generator = torch.Generator().manual_seed(sum(map(ord, stem)))
    images = torch.randint(256, (COUNTS.get(name, 4), 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(files.classes, (len(images),), generator=generator)
    labels[0] = files.classes - 1
    return images, labels.tolist()


def string(raw):
    return b"T" + struct.pack("<I", len(raw)) + raw  # BINSTRING: a str of Python 2


def array(images, code=b"u1"):
    """What cPickle wrote for an array of bytes, at protocol 2."""
    rows, columns = images.shape
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
        b"(K\x01J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", columns) + b"\x86"
        b"cnumpy\ndtype\n" + string(code) + b"K\x00K\x01\x87R"
        b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + string(images.numpy().tobytes()) + b"tb"
    )


def numbers(labels):
    return b"](" + b"".join(b"J" + struct.pack("<i", label) for label in labels) + b"e"


def dictionary(items):
    return b"\x80\x02}(" + b"".join(string(key) + value for key, value in items.items()) + b"u."


def content(files, version, name):
    images, labels = samples(files, name)
    if version.label_bytes:
        coarse = bytes(version.label_bytes - 1)
        records = zip(images, labels, strict=True)
        return b"".join(coarse + bytes([label]) + image.numpy().tobytes() for image, label in records)
    return dictionary(
        {
            b"batch_label": string(b"a batch"),
            files.label_key: numbers(labels),
            b"data": array(images.flatten(1)),
            b"filenames": b"](" + string(b"a.png") * len(labels) + b"e",
        }
    )


def write_folder(files, version, folder):
    folder.mkdir(parents=True)
    for name in version.files:
        (folder / name).write_bytes(content(files, version, name))
    return folder


def archive(files, version, change=lambda member, raw: (member, raw)):
    """The bytes of the archive, and the data set that knows its digest; `change` may alter or drop a member."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo(f"{version.folder}/readme.html"), None)
        for name in version.files:
            raw = content(files, version, name)
            member = tarfile.TarInfo(f"{version.folder}/{name}")
            member.size = len(raw)
            member, raw = change(member, raw)
            if member is not None:
                tar.addfile(member, io.BytesIO(raw))
    known = replace(version, md5=hashlib.md5(packed.getvalue()).hexdigest())
    versions = tuple(known if v is version else v for v in files.versions)
    return packed.getvalue(), replace(files, versions=versions)
