"""Compiles every kernel for GPUs that need not be there; prints, as JSON, the shared memory each takes.

In a process of its own: the tests' own has Triton's interpreter in the compiler's place.
"""

from __future__ import annotations

import json

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from cdiff.fused import few_keys, group_norm, layer_norm, pointwise

IN_FP32 = {"sums_ptr", "stats_ptr", "means_ptr", "parts_ptr"}
FLOATS = {"epsilon", "scale"}
NORM = {"shifted": True, "silu": True}
CHUNKS, SMALL = {"block": 64, "rows": 64}, {"rows": 64, "wide": 128}
KERNELS = [
    (group_norm._group_sums, {"shifted": True} | CHUNKS, 4),
    (group_norm._group_gather, {"wide": 32, "long": 16, "moments": True}, 4),
    (group_norm._group_norm, NORM | CHUNKS, 4),
    (group_norm._group_norm_backward, {"summing": True, "added": False} | NORM | CHUNKS, 4),
    (group_norm._group_norm_backward, {"summing": False, "added": True} | NORM | CHUNKS, 4),
    (group_norm._small_group_norm, NORM | SMALL, 16),
    (group_norm._small_group_norm_backward, {"added": True} | NORM | SMALL, 16),
    (layer_norm._layer_norm, {"added": True, "lines": 4, "block": 512}, 4),
    (layer_norm._layer_norm_backward, {"added": True, "lines": 4, "block": 512}, 4),
    (pointwise._geglu, {"lines": 4, "block": 256}, 4),
    (pointwise._geglu_backward, {"lines": 4, "block": 256}, 4),
    (pointwise._quick_gelu, {"backward": True, "flat": 1024}, 4),
    (pointwise._add, {"flat": 1024}, 4),
    (few_keys._fold, {"flat": 256}, 4),
]


def shared_memory(kernel, constants: dict, options: dict, capability: int) -> int:
    """The most of two ways: sizes that are multiples of 16, whose loads can be made ahead of a loop, and any sizes."""
    return max(compiled(kernel, constants, options, capability, aligned) for aligned in (True, False))


def compiled(kernel, constants: dict, options: dict, capability: int, aligned: bool) -> int:
    kinds = {
        name: "constexpr" if name in constants
        else "*fp32" if name in IN_FP32
        else "*bf16" if name.endswith("_ptr")
        else "fp32" if name in FLOATS
        else "i32"
        for name in kernel.arg_names
    }  # fmt: skip
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    multiples = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in kinds.items()
        if kind.startswith("*") or (kind == "i32" and aligned)
    }
    source = ASTSource(fn=kernel, signature=kinds, constexprs=places, attrs=multiples)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared


found = [shared_memory(kernel, constants, {"num_warps": warps}, 90) for kernel, constants, warps in KERNELS]
forward, backward = {}, {}
for rows, deep in few_keys.SHARED:
    constants = {"rows": rows, "keys": few_keys.MOST_KEYS, "deep": deep}
    forward[f"{rows}, {deep}"] = shared_memory(
        few_keys._few_keys, constants | {"rows": few_keys.ROWS}, few_keys.FORWARD, 90
    )
    backward[f"{rows}, {deep}"] = [
        shared_memory(few_keys._few_keys_backward, constants, few_keys.BACKWARD, cc) for cc in (80, 90)
    ]
print(json.dumps({"all": found, "forward": forward, "backward": backward}))
