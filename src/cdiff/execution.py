"""How the same work is done again and again on a GPU: as it comes, as CUDA graphs, or compiled and then as graphs.

Whatever a machine or driver refuses goes on as it comes, with one sentence; nothing here stops a run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

log = logging.getLogger("cdiff")

SETTLE = 3  # calls before a capture: libraries choose their kernels and allocate in them
# Calls from which graphs are taken unasked. A capture costs some calls' time and saves the launching of some thousand
# kernels in each. Compiling never pays back (experiments/speed): it is never taken unasked.
GRAPH_FROM = 50

Record = Callable[[Callable[[], None]], Callable[[], None]]  # a function on fixed tensors -> what does the same again


def choose(setting: str, wanted: str, calls: int, device: torch.device, precision: str | None = None) -> str:
    """eager | graph | compile for what is called so many times.

    setting, wanted: the setting's name and value; precision: one that rules graphs out (fp16, whose gradient scaling
    waits for the GPU).
    """
    if device.type != "cuda" or precision is not None:
        if wanted in ("graph", "compile"):
            where = f"with precision={precision}" if device.type == "cuda" else "on a CPU"
            log.warning("%s=%s does not work %s: it goes on as it comes.", setting, wanted, where)
        return "eager"
    if wanted != "auto":
        return wanted
    return "graph" if calls >= GRAPH_FROM else "eager"


def graph_recorder(stream: torch.cuda.Stream, hurried: bool = False) -> Record:
    """Captures functions into CUDA graphs that share one pool of memory.

    hurried: where the GPU has as much memory left as is taken, capture while it still works on the calls before, which
    then keep what they had; else what they had is given back first, which waits for them.
    """
    pool: list = []

    def record(function: Callable[[], None]) -> Callable[[], None]:
        if not (hurried and torch.cuda.mem_get_info(stream.device)[0] > torch.cuda.memory_reserved(stream.device)):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            graph.capture_begin(*pool[:1], capture_error_mode="thread_local")
            try:
                function()
            finally:
                graph.capture_end()
        pool.append(graph.pool())
        return graph.replay

    return record


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on a side stream, in order with what the current one did before and does after."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def compiled(function: Callable, what: str) -> Callable:
    """torch.compile; what can't be compiled on this machine goes on uncompiled, with one sentence."""
    fast: Callable | None = torch.compile(function, dynamic=False)

    def call(*inputs: Any, **named: Any) -> Any:
        nonlocal fast
        if fast is None:
            return function(*inputs, **named)
        try:
            return fast(*inputs, **named)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("%s can't be compiled (%s): it goes on uncompiled.", what, reason)
            fast = None
            return function(*inputs, **named)

    return call


class Graphed:
    """Calls of a function without gradients, captured into one graph for each shape of its tensors after SETTLE calls.

    Everything but tensors must be the same at every call of a shape.
    """

    def __init__(self, function: Callable, record: Record, what: str) -> None:
        self.function, self.record, self.what = function, record, what
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, tuple[list[Tensor], Callable[[], None], list]] = {}

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        leaves, form = tree_flatten((inputs, named))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
        if key not in self.graphs:
            self.calls[key] += 1
            if self.record is None or self.calls[key] <= SETTLE or not self._capture(key, leaves, form):
                return self.function(*inputs, **named)
        places, replay, found = self.graphs[key]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        replay()
        outputs, form = found[0]
        return tree_unflatten([out.clone() if isinstance(out, Tensor) else out for out in outputs], form)

    def _capture(self, key: tuple, leaves: list, form: Any) -> bool:
        fixed = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs, named = tree_unflatten(fixed, form)
        found: list = []

        def run() -> None:
            found[:] = [tree_flatten(self.function(*inputs, **named))]

        try:
            replay = self.record(run)
        except RuntimeError as error:
            log.warning("%s can't be made a CUDA graph (%s): it goes on as it comes.", self.what, first_line(error))
            self.record = None
            return False
        self.graphs[key] = ([leaf for leaf in fixed if isinstance(leaf, Tensor)], replay, found)
        return True


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
