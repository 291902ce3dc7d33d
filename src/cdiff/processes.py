"""Several processes of one command (`accelerate launch -m cdiff`): which one this is, and what they tell each other.

The first process alone writes and speaks; the others work along. Alone, every function here does nothing. torch is
imported where several processes meet, so that a command that needs none of it stays light.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

T = TypeVar("T")


def count() -> int:
    """How many work on this command; as the launcher says, before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_first() -> bool:
    return rank() == 0


def join(on_cpu: bool) -> None:
    """Meet the others; once a process, before anything is shared."""
    if count() == 1:
        return
    import torch.distributed as dist
    from accelerate import PartialState

    if not dist.is_initialized():
        PartialState(cpu=on_cpu)


def from_first(value: T) -> T:
    """The first process's value, in all of them."""
    if count() == 1:
        return value
    import torch.distributed as dist

    shared = [value]
    dist.broadcast_object_list(shared)
    return shared[0]


def in_turns(items: list[T]) -> list[T]:
    """This process's share of a list: every so many-th."""
    return items[rank() :: count()]


def together(own: list[Any]) -> list[Any]:
    """What each process made of its `in_turns`, in the order of the whole list; all get all of it."""
    if count() == 1:
        return own
    import torch.distributed as dist

    shares: list[Any] = [None] * count()
    dist.all_gather_object(shares, own)
    return [shares[place % count()][place // count()] for place in range(sum(map(len, shares)))]


def leave() -> None:
    """At the end of a command that went well."""
    if count() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
