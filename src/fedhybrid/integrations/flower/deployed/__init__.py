"""The server of a real deployment: nodes that register, a driver in real time, a world of devices that come and go."""

__all__: list[str] = []
