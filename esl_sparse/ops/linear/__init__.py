from .op import linear, linear_grad_values, linear_packed

__all__ = ["linear", "linear_grad_values", "linear_packed"]
