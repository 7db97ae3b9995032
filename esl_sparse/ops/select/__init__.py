from .op import largest, smallest
from .reference import splitmix64
from .topk import TopK

__all__ = ["TopK", "largest", "smallest", "splitmix64"]
