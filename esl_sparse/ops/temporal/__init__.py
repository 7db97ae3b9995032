from .op import temporal, temporal_grad_values

__all__ = ["temporal", "temporal_grad_values"]
