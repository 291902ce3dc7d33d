"""Shared fixtures. No test reaches the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cdiff.__main__ import set_environment

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels of a GPU, computed on the CPU; read when triton is imported
set_environment()  # the tests' own process is no less than the command's
if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side with threads each slow one another several times
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))  # so that tests of every folder can import tiny


@pytest.fixture(autouse=True)
def working_directory(tmp_path_factory, monkeypatch) -> Path:
    """Every test stands in a folder of its own, beside tmp_path: what it writes to outputs/ touches nobody else."""
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def no_leftover_run(working_directory):
    """A run that a test started and left open is closed, so that the next test finds no active run."""
    yield
    runs = sys.modules.get("cdiff.runs")
    if runs is not None and runs.active() is not None:
        runs.active().fail("left open by a test")


@pytest.fixture(scope="session")
def sd15_folder(tmp_path_factory) -> Path:
    """A Stable Diffusion 1.5 of tiny width, made once (see tiny.py). Copy it before changing a file."""
    import torch
    from tiny import build_sd15

    torch.set_num_threads(1)  # models this small lose time to threads
    return build_sd15(tmp_path_factory.mktemp("models") / "sd15")


@pytest.fixture
def sd15(sd15_folder):
    """That model loaded in fp32 on the CPU, fresh for each test."""
    import torch

    from cdiff.models import load_base
    from cdiff.schema import ModelConfig

    return load_base(ModelConfig(path=str(sd15_folder)), torch.float32, "cpu")


@pytest.fixture
def task(monkeypatch):
    """Put a function in the place of a task; the configurations it was called with are kept."""

    from types import SimpleNamespace

    from cdiff import tasks

    def use(body, name: str = "train") -> list:
        seen = []

        def run(cfg):
            seen.append(cfg)
            return body(cfg)

        module = SimpleNamespace(run=run)
        monkeypatch.setitem(sys.modules, f"stand_in_{name}", module)
        monkeypatch.setitem(tasks.MODULES, name, f"stand_in_{name}")
        return seen

    return use


@pytest.fixture(scope="session")
def motion_folder(tmp_path_factory) -> Path:
    """A motion adapter for the tiny base, made once."""
    from motion_adapter import build_motion_adapter

    return build_motion_adapter(tmp_path_factory.mktemp("motion") / "adapter")
