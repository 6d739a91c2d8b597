"""The command line: one file a command, `app` puts them together, nothing else in the package imports this.

The files import torch and everything built on it inside their commands, so that `--help` answers at once.
"""

from fedhybrid.cli.app import main

__all__ = ["main"]
