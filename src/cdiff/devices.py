"""Where a model computes, and in what precision."""

from __future__ import annotations

import os

import torch

from cdiff.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(device: str) -> torch.device:
    """`auto` is the first GPU when there is one, else the CPU.

    Raises:
        UserError: for a device that torch does not know or this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device} is not a device: use auto, cpu, cuda or cuda:N.") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"device={device}: torch finds no CUDA GPU on this machine; use device=cpu or device=auto.")
        if chosen.index is not None and chosen.index >= count:
            raise UserError(f"device={device}: this machine has {count} GPU(s), numbered from 0.")
    elif chosen.type != "cpu":
        raise UserError(f"device={device} is not supported: use auto, cpu, cuda or cuda:N.")
    return chosen


def process_device(device: str) -> torch.device:
    """`device=` for this process: under `accelerate launch` each has a GPU of its own."""
    resolved = resolve_device(device)
    if resolved.type == "cuda" and resolved.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return resolved


def numbered(device: torch.device) -> torch.device:
    """`cuda` as the GPU that it means here. In another thread it means the first one, whatever this thread has chosen:
    so does a process of several, each with a GPU of its own."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """`auto` is bf16 on a GPU that has it, fp16 on an older GPU, fp32 on the CPU. Returns fp32, fp16 or bf16.

    Raises:
        UserError: for a precision that the device lacks.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)  # emulated below, and slow
    if precision == "auto":
        if not on_gpu:
            return "fp32"
        return "bf16" if has_bf16 else "fp16"
    if precision not in DTYPES:
        raise UserError(f"precision={precision} is not known: use auto, {', '.join(DTYPES)}.")
    if precision == "fp16" and not on_gpu:
        raise UserError("precision=fp16 needs a GPU, and this run is on the CPU: use precision=fp32 (or auto).")
    if precision == "bf16" and on_gpu and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"precision=bf16: the GPU {name} has no bf16; use precision=fp16 or precision=fp32.")
    return precision
