"""Writes small data files in the real formats."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_fashion(folder: Path, train: int = 12, test: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Returns the training images and labels."""
    rng, stored = np.random.default_rng(0), {}
    for prefix, count in (("train", train), ("t10k", test)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
        stored[prefix] = images, labels
    return stored["train"]


def write_binary(folder: Path, records: int = 3) -> np.ndarray:
    """Returns the records of the first training file."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, stored = np.random.default_rng(1), []
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = rng.integers(0, 256, (records, 3073)).astype(np.uint8)
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.tobytes())
        stored.append(rows)
    return stored[0]


def write_jpeg(folder: Path, count: int = 4, side: int = 32) -> list[np.ndarray]:
    """Returns the pixels of the training images as Pillow decodes them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, decoded = np.random.default_rng(2), []
    for name in ("test", "train"):
        blobs, decoded = [], []
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8)).save(buffer, "JPEG", quality=90)
            blobs.append(buffer.getvalue())
            decoded.append(np.asarray(Image.open(io.BytesIO(blobs[-1]))))
        np.savez(
            folder / f"{name}.npz",
            jpeg=np.frombuffer(b"".join(blobs), np.uint8),
            offsets=np.cumsum([0, *map(len, blobs)]),
            y=(np.arange(count) % 10).astype(np.uint8),
        )
    return decoded


def write_har(folder: Path, people: int = 3, windows: int = 10) -> dict[str, dict[str, np.ndarray]]:
    """`windows` windows of each person and activity, in two files; returns what each holds."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, stored = np.random.default_rng(3), {}
    for name, persons in (("train", range(1, people)), ("test", (people,))):
        subject = np.repeat(np.array(persons, np.uint8), 6 * windows)
        y = np.tile(np.repeat(np.arange(6, dtype=np.uint8), windows), len(persons))
        x = rng.normal(loc=np.arange(9)[:, None], scale=1 + np.arange(9)[:, None], size=(len(y), 9, 128))
        stored[name] = {"x": x.astype(np.float32), "y": y, "subject": subject}
        np.savez(folder / f"{name}.npz", **stored[name])
    return stored


def write_roles(folder: Path, lengths: dict[str, int] | None = None) -> dict[str, str]:
    """Roles whose texts have those lengths; returns the texts."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, texts = np.random.default_rng(4), {}
    for role, length in (lengths or {"Play_LONG": 1200, "Play_SHORT": 100, "Play_OTHER": 600}).items():
        text = "".join(rng.choice(list("abcde ,\n"), length))
        texts[role] = text[:-1] + "!"
    data = {role: {"lines": text.split("\n")} for role, text in texts.items()}
    content = {"users": list(texts), "num_lines": [len(d["lines"]) for d in data.values()], "user_data": data}
    (folder / "roles.json").write_text(json.dumps(content), encoding="utf-8")
    return texts
