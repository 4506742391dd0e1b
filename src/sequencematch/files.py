"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, and make its folder if need be; one that was there stays until the new one is whole.

    Raises OSError if it cannot be written; nothing half-written is left.
    """
    half = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(half, path)
    finally:
        with suppress(OSError):
            half.unlink()
