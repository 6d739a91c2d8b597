"""The wire: keys, the SuperLink as a process, the server's and the device's end of the connection."""

__all__: list[str] = []
