"""A run that was stopped half-way, and a way to let something happen at a step of the next one."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from tiny_job import draw_pictures, words
from tiny_world import SETTINGS

from cdiff.cli import main
from cdiff.keeping import Keeper

HALF = 12


@pytest.fixture
def at_step(monkeypatch):
    """Let an action happen once a step is done and before it is saved: at_step(12, action)."""

    def use(step: int, action) -> None:
        after_step, left = Keeper.after_step, [action]  # the run that goes on later is left in peace

        def hooked(self, accelerator, state, last):
            if state.step == step and left:
                left.pop()(self)
            after_step(self, accelerator, state, last)

        monkeypatch.setattr(Keeper, "after_step", hooked)

    return use


@pytest.fixture(scope="session")
def job(sd15_folder, tmp_path_factory) -> list[str]:
    """The words of a tiny training."""
    return [*words(sd15_folder, draw_pictures(tmp_path_factory.mktemp("job") / "pictures")), *SETTINGS]


@pytest.fixture(scope="session")
def whole(job, tmp_path_factory) -> Path:
    """The run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*job, f"output={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def stopped_once(job, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        after_step = Keeper.after_step

        def hooked(self, accelerator, state, last):
            if state.step == HALF:
                self.stop.asked = "SIGTERM"
            after_step(self, accelerator, state, last)

        patch.setattr(Keeper, "after_step", hooked)
        assert main([*job, f"output={folder}"]) == 0
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000010", "step-000012"]
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """A copy of a run that a signal stopped at step HALF, with two checkpoints."""
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))


@pytest.fixture
def refused(capfd):
    """Run a command line that must fail as it should; returns its one sentence."""

    def run(line: list[str], *names: str) -> str:
        capfd.readouterr()
        code = main(line)
        said = capfd.readouterr()
        assert code not in (0, 1), f"exit code {code}: {said.err}"
        assert "Traceback" not in said.err + said.out and "Logging error" not in said.err, said.err
        errors = [line for line in said.err.splitlines() if not line.startswith("Warning:")]
        sentence = " ".join(errors)
        assert sentence.startswith("Error: ") and sentence.rstrip().endswith((".", "?")), said.err
        assert "bug of cdiff" not in sentence, sentence
        for name in names:
            assert re.search(name, sentence), f"'{name}' is not named: {sentence}"
        return sentence

    return run


@pytest.fixture
def tmpfs(tmp_path):
    """A small file system of its own: mount(kilobytes) -> folder. Skips where this user may not mount."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(kilobytes: int, *options: str) -> Path:
        words = ",".join([f"size={kilobytes}k", *options])
        what = ["remount"] if os.path.ismount(folder) else []
        done = os.system(f"mount -t tmpfs -o {','.join([*what, words])} cdiff-test '{folder}' 2>/dev/null")
        if done != 0:
            pytest.skip("needs the right to mount a tmpfs")
        return folder

    yield mount
    if os.path.ismount(folder):
        os.system(f"umount -l '{folder}'")
