"""Where the time of a GPU goes: its kernels within some steps, one by one and by what they do."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from flops import wait
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

# The first that a kernel's name matches.
FAMILIES = {
    "attention": r"sdpa|flash|fmha|dot_do_o|convert_dq|^_few_keys|^_fold",
    "convolutions": r"fprop|dgrad|wgrad|convolve|conv2d|implicit",
    "layouts of convolutions": r"nchwToNhwc|nhwcToNchw|nhwcAddPadding|foldedNhwc",
    "matrix products": r"nvjet|gemm|gemv|cutlass|splitK",
    "group norms": r"^_group_|^_small_group_norm|GroupNorm|ComputeInternalGradients",
    "layer norms": r"layer_norm|RowwiseMoments",
    "GEGLU, quick GELU": r"^_geglu|^_quick_gelu",
    "sums with a bias": r"^_add\b",
    "copies": r"copy|Memcpy|CatArray",
    "filling with 0": r"Memset|FillFunctor",
    "optimiser, gradients together": r"multi_tensor|foreach|adam",
    "sums over a dimension": r"reduce",
    "other arithmetic": r"elementwise",
}


class KernelProfile:
    """Told every step of what is profiled: looks at steps `first` to `first + count`."""

    def __init__(self, first: int, count: int, device: torch.device) -> None:
        self.first, self.count, self.device, self.done = first, count, device, 0
        on_gpu = device.type == "cuda"
        self.kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
        self.time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        self.profiler = profiler(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])

    def __call__(self, *_told: Any) -> None:
        self.done += 1
        if self.done == self.first:
            wait(self.device)
            self.profiler.start()
        elif self.done == self.first + self.count:
            wait(self.device)
            self.profiler.stop()

    def found(self) -> dict[str, Any]:
        """ms and kernels a step; by family; and the kernels that take the most."""
        rows = [event for event in self.profiler.key_averages() if event.device_type == self.kind]
        rows = [(event.key, getattr(event, self.time) / 1000 / self.count, event.count / self.count) for event in rows]
        rows.sort(key=lambda row: -row[1])
        milliseconds, calls = Counter(), Counter()
        for name, time, count in rows:
            milliseconds[family(name)] += time
            calls[family(name)] += count
        return {
            "ms_of_kernels_per_step": round(sum(milliseconds.values()), 3),
            "kernels_per_step": round(sum(calls.values())),
            "families": {
                name: {"ms": round(time, 3), "kernels": round(calls[name], 1)}
                for name, time in milliseconds.most_common()
            },
            "kernels": [
                {"name": name[:160], "ms": round(time, 4), "calls_per_step": round(count, 2)}
                for name, time, count in rows[:80]
            ],
        }


def family(name: str) -> str:
    """What a kernel does, by its name."""
    return next((kind for kind, pattern in FAMILIES.items() if re.search(pattern, name)), "other")
