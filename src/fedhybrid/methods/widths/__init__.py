"""Parts of methods whose clients train models of different widths."""

from fedhybrid.methods.widths.clients import MaskedClient, batch_statistics

__all__ = ["MaskedClient", "batch_statistics"]
