from .op import (
    GRADIENTS,
    RETURNED,
    Backward,
    Forward,
    affine,
    norm_lif_backward_op,
    norm_lif_op,
    panel_stats,
    vector_dtype,
)

__all__ = [
    "GRADIENTS",
    "RETURNED",
    "Backward",
    "Forward",
    "affine",
    "norm_lif_backward_op",
    "norm_lif_op",
    "panel_stats",
    "vector_dtype",
]
