from .op import GRADIENTS, Backward, Forward, affine, norm_lif_backward_op, norm_lif_op, panel_stats

__all__ = ["GRADIENTS", "Backward", "Forward", "affine", "norm_lif_backward_op", "norm_lif_op", "panel_stats"]
