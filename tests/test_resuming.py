"""`resume=`: which run goes on, and with which settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cdiff.cli import main
from cdiff.compose import compose, to_checked_config
from cdiff.errors import UserError
from cdiff.finding import find_resumable
from cdiff.overrides import read_overrides
from cdiff.resuming import adopt_resumed, changed_keys
from cdiff.runs import Run
from cdiff.schema import ConceptConfig, Config


def words(*line: str) -> list[str]:
    from cdiff import catalog

    return [override.input_line for override in read_overrides(list(line), catalog.groups(), False)]


def adopted(*line: str) -> Config:
    """The configuration that a command line goes on with."""
    given = words(*line)

    def composed(others: list[str]) -> Config:
        return to_checked_config(compose(others))

    return adopt_resumed(composed(given), given, composed)


def stopped(*line: str, how: str = "interrupt") -> Run:
    config = to_checked_config(compose(words(*line)))
    run = Run.start(config, "train")
    getattr(run, how)()
    return run


def with_checkpoint(run: Run, step: int = 10) -> Run:
    (run.folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    return run


def test_a_bare_resume_takes_every_setting_of_the_run():
    stopped("concept=cat", "train.steps=33", "method=lora", "output=a")
    config = adopted("resume=a")
    assert (list(config.concepts), config.train.steps, config.method.name) == (["cat"], 33, "lora")
    assert (config.resume.run, config.output, config.task) == ("a", "a", "train")


def test_the_very_same_words_are_no_change():
    line = ["concept=cat", "train.steps=33", "method=lora", "loss.prior_weight=2", "precision=fp32"]
    stopped(*line, "output=a")
    assert adopted(*line, "resume=a", "dry_run=true").dry_run


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["seed=42"], "seed was 7 and is 42"),  # the default, but said
        (["train.steps=9"], "train.steps was 500 and is 9"),
        (["concept=cat"], "concepts was dog and is cat"),
        (["concept.class_word=wolf"], "concept.class_word was null and is wolf"),
        (["method=class_diffusion"], "method.name was lora and is class_diffusion"),
        (["loss.spl_weight=0.5", "method.train_token=true"], "loss.spl_weight was 0.0 and is 0.5"),
        (["checkpoints.every=5"], "checkpoints.every was null and is 5"),
    ],
)
def test_a_changed_setting_is_named_and_refused(line, sentence):
    stopped("method=lora", "seed=7", "train.steps=500", "output=a")
    with pytest.raises(UserError) as told:
        adopted(*line, "resume=a")
    assert sentence in str(told.value) and "resume.allow=[" in str(told.value)


def test_what_is_allowed_is_taken_and_nothing_else():
    run = stopped("seed=7", "output=a")
    config = adopted("train.steps=900", "train.log_every=3", "resume=a", "resume.allow=[train]")
    assert (config.train.steps, config.train.log_every, config.seed) == (900, 3, 7)
    assert changed_keys(run, config) == ["train.steps", "train.log_every"]
    with pytest.raises(UserError, match=r"seed was 7 and is 1\."):
        adopted("train.steps=900", "seed=1", "resume=a", "resume.allow=[train.steps]")
    with pytest.raises(UserError, match=r"resume\.allow=train\.stps is no setting; did you mean 'train.steps'"):
        adopted("resume=a", "resume.allow=[train.stps]")


def test_what_is_allowed_is_checked_together_with_the_rest():
    stopped("method=textual_inversion", "output=a")
    with pytest.raises(UserError, match=r"textual_inversion takes method\.train_unet=none"):
        adopted("method.train_unet=crossattn", "resume=a", "resume.allow=[method.train_unet]")


def test_latest_is_the_newest_that_was_stopped():
    stopped("concept=cat", "output=outputs/a").note(started="2026-01-01")
    stopped("output=outputs/b").note(started="2026-01-02")
    stopped("output=outputs/c", how="finish").note(started="2026-01-03")
    stopped("output=outputs/d", how="finish").note(started="2026-01-04", status="failed")
    Run.start(to_checked_config(compose(words("output=outputs/e"))), "train")  # is running
    assert adopted("resume=latest").output == "outputs/b"
    assert adopted("resume=latest", "concept=cat").output == "outputs/a"
    with_checkpoint(Run(Path("outputs/d")))
    assert adopted("resume=latest").output == "outputs/d"
    with pytest.raises(UserError, match="no training run of teapot under outputs/ was stopped before its end"):
        adopted("resume=latest", "concept=teapot")
    for folder in ("outputs/b", "outputs/d"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="outputs/e is still running"):
        find_resumable(["dog"], "class_diffusion")


def test_a_run_that_works_or_is_done_does_not_go_on():
    Run.start(to_checked_config(compose(words("output=a"))), "train")
    with pytest.raises(UserError, match="The run a is in use by process"):
        adopted("resume=a")
    done = with_checkpoint(stopped("output=b", how="finish"))
    with pytest.raises(UserError, match=r"The run b is done: .*there is step-000010 in b/checkpoints"):
        adopted("resume=b")
    assert adopted("resume=b/checkpoints/step-000010").resume.run == "b/checkpoints/step-000010"
    done.note(task="sample")
    with pytest.raises(UserError, match="is a run of task=sample: only a training goes on"):
        adopted("resume=b")


def test_a_dry_run_says_where_it_would_go_on(capsys):
    run = stopped("output=a")
    before = (run.folder / "run.json").read_text()
    assert main(["resume=a", "dry_run=true"]) == 0
    assert "goes on with" in capsys.readouterr().out
    assert (run.folder / "run.json").read_text() == before


def test_run_json_of_a_resumed_run_tells_what_happened():
    run = stopped("output=a")
    assert run.info["resumable"] and run.info["checkpoint"] is None
    again = Run.resume(run.folder, Config(concepts={"dog": ConceptConfig()}, output="a"), {"from_step": 0})
    info = Run(run.folder).info
    assert info["status"] == "running" and again.is_live() and "reason" not in info and "resumable" not in info
    assert [entry["from_step"] for entry in info["resumed"]] == [0]
    again.finish()
    with pytest.raises(UserError, match="is done"):
        Run.resume(run.folder, Config(output="a"), {})
    assert not again.is_live(), "the refused one kept the lock"
