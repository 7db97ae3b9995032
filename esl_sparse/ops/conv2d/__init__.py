from .geometry import Geometry, from_rows, layout_of, to_rows
from .op import conv2d, conv2d_grad_values, conv2d_packed, conv2d_panels

__all__ = [
    "Geometry",
    "conv2d",
    "conv2d_grad_values",
    "conv2d_packed",
    "conv2d_panels",
    "from_rows",
    "layout_of",
    "to_rows",
]
