from .op import (
    Geometry,
    conv2d,
    conv2d_backward_op,
    conv2d_grad_values,
    conv2d_op,
    conv2d_packed,
    layout_of,
)

__all__ = [
    "Geometry",
    "conv2d",
    "conv2d_backward_op",
    "conv2d_grad_values",
    "conv2d_op",
    "conv2d_packed",
    "layout_of",
]
