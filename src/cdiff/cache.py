"""Where fetched and rendered pictures are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$CDIFF_CACHE, else $XDG_CACHE_HOME/cdiff, else ~/.cache/cdiff."""
    if own := os.environ.get("CDIFF_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cdiff"
