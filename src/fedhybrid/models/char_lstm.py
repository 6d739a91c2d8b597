"""A recurrent network that guesses the next character of a window of text.

Follows the model for Shakespeare of S. Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018,
https://arxiv.org/abs/1812.01097: an embedding of 8 numbers, LSTM layers, one linear layer on the last state.
Differs: one layer of 128 where they have two of 256. A captured step runs an LSTM as its single operators, moment by
moment, so that width and depth cost more than in a fused kernel; `hidden=256, layers=2` gives theirs.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.parts import require_shape

__all__ = ["CharLstm"]


class CharLstm(nn.Module):
    """Embedding, LSTM, linear layer on the last state; maps (b, t) of characters to scores (b, classes).

    The characters are whole numbers below `tokens`, which is the size of the alphabet.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        tokens: int,
        hidden: int = 128,
        layers: int = 1,
        embedding: int = 8,
    ) -> None:
        super().__init__()
        require_shape("char-lstm", input_shape, characters=1)
        sizes = {"hidden": hidden, "layers": layers, "embedding": embedding}
        if problems := [
            f"model option {key} must be at least 1, got {size}" for key, size in sizes.items() if size < 1
        ]:
            raise ConfigError(problems)
        self.embedding = nn.Embedding(tokens, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each character as the next one."""
        states, _ = self.lstm(self.embedding(x))
        return self.head(states[:, -1])  # type: ignore[no-any-return]
