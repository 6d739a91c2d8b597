"""What compression lost of an update is added to the client's next one, so that nothing is lost for good.

Source: S. P. Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019,
https://arxiv.org/abs/1901.09847, Algorithm 2. There every worker takes part in every step; here a client's error waits
for the next time that it is asked, and for the next time that a partial or masked update holds the element.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from fedhybrid.updates.base import Context, Form, Pieces

__all__ = ["ErrorFeedback"]


@final
@dataclass(frozen=True, kw_only=True)
class ErrorFeedback:
    """Adds what the transforms after it lost of the client's earlier updates; the chain keeps that for the client."""

    stage: ClassVar[int] = 1
    lossy: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """As in `TRANSFORMS`."""
        return "error-feedback"

    @property
    def idle(self) -> bool:
        """Never."""
        return False

    def form(self, form: Form) -> Form:
        """The same."""
        return form

    def encode(self, pieces: Pieces, context: Context) -> Pieces:
        """See `Transform`."""
        return {
            name: replace(piece, values=piece.values + context.errors[name]) if name in context.errors else piece
            for name, piece in pieces.items()
        }

    def decode(self, pieces: Pieces, context: Context) -> Pieces:
        """The receiver takes it as it is."""
        return pieces
