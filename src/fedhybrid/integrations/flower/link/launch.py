"""Runs Flower's superlink script inside a process that ends with its parent and shields what devices need not reach.

This file is run by its path (`python -P launch.py PARENT_PID SECRET_FILE SCRIPT ARGUMENT...`) and uses only the
standard library, Flower and what Flower needs.

- The process looks twice a second whether its parent still lives, and ends itself where not: also a parent that was
  killed leaves nothing behind, on every operating system, and without code between fork and exec.
- Flower's Control API lets everybody who reaches the port register nodes, start and stop runs. Here only what carries
  the header made of the secret file gets through; devices reach the Fleet API (each call signed by a node's key) and
  the health check, nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["CONTROL_HEADER", "control_token", "main"]

CONTROL_HEADER = "fedhybrid-control"
_OPEN_TO_DEVICES = ("/v1/fleet/", "/health")
_LOOK_EVERY_S = 0.5
_GRACE_S = 5.0


def control_token(secret: bytes) -> str:
    """What the header says: derived from the secret, so that the secret itself is never sent."""
    return hmac.new(secret, b"fedhybrid control", hashlib.sha256).hexdigest()


class _Shield:
    """ASGI layer outside all of Flower's own: turns away what is neither for devices nor from the server's owner."""

    def __init__(self, app: Any, *, token: str) -> None:
        self._app, self._token = app, token.encode("ascii")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope["path"].startswith(_OPEN_TO_DEVICES):
            await self._app(scope, receive, send)
            return
        shown = dict(scope["headers"]).get(CONTROL_HEADER.encode("ascii"), b"")
        if hmac.compare_digest(shown, self._token):
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"application/json")]})
        await send(
            {
                "type": "http.response.body",
                "body": b'{"detail": "Only the process that started this server may ask that."}',
            }
        )


def _put_shield(token: str) -> None:
    from flwr.superlink import extensions  # noqa: PLC0415  (heavy: only where the superlink runs)
    from starlette.middleware import Middleware  # noqa: PLC0415

    theirs = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(_Shield, token=token), *theirs())


def _end_with(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


def main() -> None:
    """Reads its arguments and becomes the script."""
    parent_pid, secret_file, script, *arguments = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent_pid),), daemon=True).start()
    _put_shield(control_token(Path(secret_file).read_bytes()))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
