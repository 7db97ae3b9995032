from .op import linear, linear_packed

__all__ = ["linear", "linear_packed"]
