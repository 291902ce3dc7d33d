"""cdiff: personalise text-to-image diffusion models without losing what they compose.

In Python (docs/python.md): `cdiff.load(pipe, run)` puts a finished run into a stock pipeline, `cdiff.open_run(run)`
opens one to draw and to score.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
_LAZY = ("load", "open_run")  # torch and diffusers load when these are first asked for


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from cdiff import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'cdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
