"""task=doctor: what there is, and what to fix."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from cdiff.cli import main
from cdiff.schema import Config
from cdiff.tasks import doctor


def test_it_tells_versions_devices_caches_hub_and_wandb(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["task=doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("torch", "diffusers", "precision", "fp32", "cdiff's cache", "hub", "wandb", "offline", "to fix"):
        assert word in said
    assert importlib.metadata.version("diffusers") in said and str(tmp_path / "cache") in said
    assert "a token is stored" in said and "hf_secret" not in said
    assert not Path("outputs").exists() and not (tmp_path / "cache").exists()


def test_a_package_that_is_too_old_is_named(monkeypatch):
    version = importlib.metadata.version
    old = {"diffusers": "0.20.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old.get(name) or version(name))
    assert doctor.outdated() == [("diffusers", "0.20.0", "diffusers>=0.35")]


def test_a_hub_that_gives_no_answer_is_to_be_fixed(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    found = doctor.Findings()
    doctor.look_at_hub(Config(), found)
    assert "gives no answer" in found.rows["hub"] and "model.path=DIR" in found.fixes[0]


def test_a_cache_that_can_not_be_written_is_to_be_fixed(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.os, "access", lambda place, mode: Path(place) != tmp_path)
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    found = doctor.Findings()
    doctor.look_at_caches(Config(), found)
    assert found.fixes == [f"{tmp_path} can't be written: set CDIFF_CACHE=DIR."]


def test_a_device_that_is_not_there(capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = doctor.Findings()
    doctor.look_at_devices(Config(device="cuda"), found)
    assert "no CUDA GPU" in found.fixes[0] and found.rows["precision"] == "fp32, bf16 on cpu; auto is fp32"


@pytest.mark.parametrize("count", [0, 3])
def test_sizes(tmp_path, count):
    for number in range(count):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_bytes(b"12345")
    assert doctor.size_of(tmp_path) == 5 * count
