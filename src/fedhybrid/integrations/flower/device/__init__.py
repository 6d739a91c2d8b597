"""A real device's side: one slim process that joins a recipe and does its tasks (`joining` is the front door).

Imports stay light: no capture, no planner. What needs those is done by a process that ends again (`workshop`).
"""

__all__: list[str] = []
