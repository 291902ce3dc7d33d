"""What the jobs of one process share: things that are slow to make and the same for each of them.

Kept only while a sweep runs its jobs in this process (`keep`); a single run makes what it needs and keeps nothing. Who
keeps something sees to it that a job can't change it: `models.load_base` hands out copies, training views are only
read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")
MOST = {"base": 2, "scorers": 2, "views": 8}  # the least recently used one goes first

_kept: dict[str, OrderedDict[Hashable, Any]] | None = None


def keep() -> None:
    """From now on this process keeps what it makes through `get`."""
    global _kept
    _kept = {} if _kept is None else _kept


def forget() -> None:
    """Give everything back, and keep nothing from now on."""
    global _kept
    _kept = None


def keeping() -> bool:
    return _kept is not None


def get(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gives; while keeping, made once for each key of a kind (those of MOST)."""
    if _kept is None:
        return make()
    shelf = _kept.setdefault(kind, OrderedDict())
    if key not in shelf:
        shelf[key] = make()
    shelf.move_to_end(key)
    while len(shelf) > MOST[kind]:
        shelf.popitem(last=False)
    return shelf[key]
