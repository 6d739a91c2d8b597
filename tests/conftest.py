"""One intra-op thread: tests run beside each other, and bit-identity is meant at equal thread counts."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
