"""Flower's nodes under the engine's virtual clock: Ray (`simulation` is the front door) or memory alone."""

__all__: list[str] = []
