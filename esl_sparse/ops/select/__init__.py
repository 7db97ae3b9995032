from .op import largest, smallest
from .topk import TopK

__all__ = ["TopK", "largest", "smallest"]
