from .op import detect, pack, pack_tensor, unpack

__all__ = ["detect", "pack", "pack_tensor", "unpack"]
