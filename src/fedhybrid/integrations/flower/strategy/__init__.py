"""`FedHybridStrategy`: plans and memory-aware selection for anybody's own Flower app."""

__all__: list[str] = []
