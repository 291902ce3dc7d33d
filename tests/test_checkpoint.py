"""Checkpoints on disk: whole or not there, the newest good one is found, what is damaged is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from cdiff import checkpoint
from cdiff.checkpoint import CHECKSUMS, STATE, Store, read, steps
from cdiff.errors import UserError

FACTS = {"window": {"steps": []}, "events": 12}
FILES = ("state.json", "weights.safetensors", "optimizer.safetensors", "rest.safetensors", "checksums.json")


def tensors(value: float = 1.0):
    return {
        "weights": {"rows": torch.full((2, 4), value), "unet.a": torch.arange(6.0)},
        "optimizer": {"rows::step": torch.tensor(3.0)},
        "rest": {"window": torch.zeros(0, 0), "random.0.cpu": torch.arange(5, dtype=torch.uint8)},
    }


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path, keep=2)
    for step in (2, 4, 6):
        store.save(step, FACTS, tensors(step))
    return store


def names(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_what_was_saved_comes_back(store):
    found = store.newest()
    assert found.step == 6 and found.facts["events"] == 12
    for group, wanted in tensors(6).items():
        assert found.tensors[group].keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found.tensors[group][name], tensor) and found.tensors[group][name].dtype == tensor.dtype


def test_the_newest_are_kept_and_nothing_else_is_left(store):
    assert names(store) == ["step-000004", "step-000006"]
    assert sorted(path.name for path in (store.folder / "step-000006").iterdir()) == sorted(FILES)


def test_later_steps_of_another_past_go_once_the_new_one_is_written(store):
    store.save(5, FACTS, tensors())
    assert names(store) == ["step-000004", "step-000005"]


def test_a_step_is_written_again_over_itself(store):
    store.save(6, FACTS, tensors(9))
    assert store.newest().tensors["weights"]["rows"][0, 0] == 9 and names(store) == ["step-000004", "step-000006"]


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [empty, cut, flip, remove], ids=lambda damage: damage.__name__)
def test_a_damaged_newest_one_is_told_of_and_the_one_before_is_used(store, file, damage, caplog):
    damage(store.folder / "step-000006" / file)
    found = store.newest()
    assert found.step == 4
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("The checkpoint of step 6 is not used: ") and "The one before is tried" in line
    assert file in line or "checksums.json" in line or "damaged" in line


def test_without_a_good_one_there_is_none(store):
    for folder in store.folder.iterdir():
        flip(folder / "weights.safetensors")
    assert store.newest() is None
    assert Store(store.folder / "nowhere", 2).newest() is None


@pytest.mark.parametrize("file", [*FILES, None])
def test_a_write_that_fails_leaves_the_last_good_one_and_no_rubbish(store, file, monkeypatch):
    real = os.fsync
    count = iter(range(100))

    def full(handle):
        if next(count) == (FILES.index(file) if file else 5):
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(8, FACTS, tensors())
    monkeypatch.undo()
    assert names(store) == ["step-000004", "step-000006"] and store.newest().step == 6


def test_what_a_killed_process_left_is_swept_and_never_read(store):
    shutil.copytree(store.folder / "step-000006", store.folder / ".step-000008-x.partial")
    assert store.newest().step == 6
    store.save(8, FACTS, tensors())
    assert names(store) == ["step-000006", "step-000008"]


def test_a_deleted_run_folder_is_not_made_again(store):
    shutil.rmtree(store.folder.parent)
    with pytest.raises(FileNotFoundError):
        store.save(8, FACTS, tensors())
    assert not store.folder.parent.exists()


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/b"])
def test_checksums_that_name_a_file_elsewhere_are_refused(store, name):
    folder = store.folder / "step-000006"
    sums = json.loads((folder / CHECKSUMS).read_text())
    (folder / CHECKSUMS).write_text(json.dumps(sums | {name: [1, "0"]}))
    with pytest.raises(UserError, match="lies outside of the checkpoint"):
        read(folder)


def test_a_link_that_points_outside_is_refused(store, tmp_path):
    file = store.folder / "step-000006" / "weights.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="lies outside of the checkpoint"):
        read(file.parent)


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        ("[]", "lists no state.json"),
        ("{}", "lists no state.json"),
        ("[" * 100_000, "nested too deeply"),
        ('{"state.json": 5}', "no size and checksum of state.json"),
        ('{"state.json": [1, 2]}', "is damaged"),
        ("\x00\xff", "is not readable JSON"),
    ],
)
def test_checksums_of_nonsense(store, sums, words):
    folder = store.folder / "step-000006"
    (folder / CHECKSUMS).write_text(sums)
    with pytest.raises(UserError, match=words):
        read(folder)


@pytest.mark.parametrize("state", ['{"format": 99, "step": 3}', '{"format": 1, "step": "three"}', "[]"])
def test_a_state_of_another_format(store, state):
    folder = store.folder / "step-000006"
    (folder / STATE).write_text(state)
    sums = {p.name: [p.stat().st_size, checkpoint._sha256(p)] for p in folder.iterdir() if p.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(sums))
    with pytest.raises(UserError, match="is not of format 1"):
        read(folder)


def test_other_folders_are_no_checkpoints(store):
    (store.folder / "step-best").mkdir()
    assert [step for step, _ in steps(store.folder)] == [4, 6]
