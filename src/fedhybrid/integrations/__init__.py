"""Other people's systems that FedHybrid's methods run on; each folder is optional and imports its own library."""

__all__: list[str] = []
