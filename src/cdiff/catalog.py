"""What conf/ holds: groups, their options, the comment that heads each file. Needs neither Hydra nor a YAML parser."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

CONF_PACKAGE = "cdiff.conf"


@functools.cache
def conf_folder() -> Path:
    """The folder of the packaged configuration."""
    spec = importlib.util.find_spec(CONF_PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeError("The configuration files (cdiff.conf) are missing: install the package again.")
    return Path(spec.origin).parent


def groups(*more: Path) -> dict[str, dict[str, Path]]:
    """group -> option -> file, of the packaged folder and of the user's own (`--config-dir`), which win."""
    found: dict[str, dict[str, Path]] = {}
    for root in (conf_folder(), *more):
        for file in sorted(root.glob("*/**/*.yaml")):
            group = file.parent.relative_to(root).as_posix()
            found.setdefault(group, {})[file.stem] = file
    return dict(sorted(found.items()))


def describe(file: Path) -> str:
    """The first sentence of the comment that heads a file, without the package line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        if text and not text.startswith("@package"):
            return text.split(": ")[0].rstrip(".") if len(text) > 90 else text.rstrip(".")
    return ""
