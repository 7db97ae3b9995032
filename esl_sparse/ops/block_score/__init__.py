from .op import BlockScorer, LayerCall

__all__ = ["BlockScorer", "LayerCall"]
