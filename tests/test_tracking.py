"""What a dashboard gets is proven by reading its files back."""

from __future__ import annotations

import builtins
import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_scorer import FakeScorer
from PIL import Image
from tiny_job import draw_pictures, words

from cdiff import tracking
from cdiff.cli import main
from cdiff.errors import UserError
from cdiff.evaluation import evaluating
from cdiff.runs import Run
from cdiff.schema import Config, LoggerConfig
from cdiff.tracking import NullTracker, TensorBoardTracker, WandbTracker, open_tracker, wandb_mode

BLOCK = 32768  # of the LevelDB log that a .wandb file is


@pytest.fixture(autouse=True)
def wandb_apart(tmp_path, monkeypatch):
    """wandb's own folders stay in the test's; nobody is logged in."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def new_run(logger: str, **settings) -> tuple[Config, Run]:
    cfg = Config(logger=LoggerConfig(name=logger, **settings), output="outputs/train/dog/now")
    return cfg, Run.start(cfg, "train")


def picture() -> Image.Image:
    return Image.new("RGB", (8, 8), (200, 30, 30))


def use(tracker) -> None:
    for step in (10, 20):
        tracker.log({"loss/total": 1 / step, "lr": 2e-5}, step)
    tracker.images("samples", [picture(), np.full((8, 8, 3), 128, np.uint8)], ["a dog", "a cat"], 20)
    tracker.summary({"seconds": 12.5})
    tracker.finish()


def wandb_records(folder: Path, patience: float = 15.0) -> list:
    """Every record of the one .wandb file below `folder`, once wandb's own process has written the last, `exit`."""
    until = time.monotonic() + patience
    while True:
        records = read_records(folder)
        ended = any(record.WhichOneof("record_type") == "exit" for record in records)
        if ended or time.monotonic() > until:
            return records
        time.sleep(0.1)


def read_records(folder: Path) -> list:
    """The records that are in the one file below `folder` now."""
    [file] = folder.glob("wandb/*run-*/*.wandb")
    return records_of(file)


def records_of(file: Path) -> list:
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, records, parts = file.read_bytes(), 7, [], b""  # 7 bytes of wandb's header
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:  # too little left of the block for a header: padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def history(records: list) -> list[dict]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items})
    return rows


def test_wandb_offline_holds_what_was_logged(capfd):
    cfg, run = new_run("wandb", project="studies", tags=["a"])
    cfg.loss.spl_weight = 0.375
    tracker = open_tracker(cfg, run)
    assert isinstance(tracker, WandbTracker)
    use(tracker)
    records = wandb_records(run.folder)
    rows = history(records)
    scalars = [row for row in rows if "loss/total" in row]
    assert [(row["step"], row["loss/total"], row["lr"]) for row in scalars] == [(10, 0.1, 2e-5), (20, 0.05, 2e-5)]
    [pictures] = [row for row in rows if "samples/captions" in row]
    assert pictures["samples/captions"] == ["a dog", "a cat"] and pictures["step"] == 20
    files = [next(run.folder.glob(f"wandb/*run-*/files/{name}")) for name in pictures["samples/filenames"]]
    assert Image.open(files[0]).convert("RGB").getpixel((4, 4)) == (200, 30, 30)
    assert Image.open(files[1]).convert("RGB").getpixel((4, 4)) == (128, 128, 128)
    [begun] = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
    assert begun.project == "studies" and list(begun.tags) == ["a"]
    sent = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert sent["loss.spl_weight"] == 0.375 and "loss" not in sent
    assert any(record.WhichOneof("record_type") == "exit" for record in records), "the run was not closed"
    shown = capfd.readouterr()
    assert "wandb" not in shown.out + shown.err, "wandb talks"


@pytest.mark.parametrize("logger", ["none", "tensorboard", "wandb"])
def test_events_hold_everything_whatever_the_logger(logger):
    cfg, run = new_run(logger)
    use(open_tracker(cfg, run))
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [e["loss/total"] for e in events if e["event"] == "scalars"] == [0.1, 0.05]
    assert [e["captions"] for e in events if e["event"] == "images"] == [["a dog", "a cat"]]
    assert [e["seconds"] for e in events if e["event"] == "summary"] == [12.5]


def test_tensorboard_holds_what_was_logged():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg, run = new_run("tensorboard")
    tracker = open_tracker(cfg, run)
    assert isinstance(tracker, TensorBoardTracker)
    use(tracker)
    read = EventAccumulator(str(run.folder / "tensorboard"))
    read.Reload()
    scalars = read.Scalars("loss/total")
    assert [(scalar.step, round(scalar.value, 6)) for scalar in scalars] == [(10, 0.1), (20, 0.05)]
    assert len(read.Tags()["images"]) == 2


@pytest.mark.parametrize("module", ["wandb", "torch.utils.tensorboard"])
def test_a_missing_package_is_one_warning_and_no_stop(module, monkeypatch, caplog):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name == module:
            raise ImportError(f"No module named {module!r}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    cfg, run = new_run("wandb" if module == "wandb" else "tensorboard")
    tracker = open_tracker(cfg, run)
    use(tracker)
    assert isinstance(tracker, NullTracker)
    assert len(caplog.records) == 1 and "nothing goes to a dashboard" in caplog.text


def stand_in_wandb(monkeypatch, init) -> None:
    fake = SimpleNamespace(init=init, Settings=lambda **_: None, Image=lambda image, caption: image)
    monkeypatch.setitem(sys.modules, "wandb", fake)


class Session:
    """Of wandb, with a network that fails after the first record."""

    def __init__(self) -> None:
        self.records, self.summary, self.closed = [], {}, False

    def define_metric(self, *_, **__) -> None: ...

    def log(self, record) -> None:
        if self.records:
            raise ConnectionError("the network is gone")
        self.records.append(record)

    def finish(self, quiet=None) -> None:
        self.closed = True


def test_an_unreachable_wandb_is_kept_offline(monkeypatch, caplog):
    modes = []

    def init(mode, **_):
        modes.append(mode)
        if mode == "online":
            raise ConnectionError("no route to host")
        return Session()

    stand_in_wandb(monkeypatch, init)
    cfg, run = new_run("wandb", mode="online")
    assert isinstance(open_tracker(cfg, run), WandbTracker)
    assert modes == ["online", "offline"]
    assert [record.getMessage() for record in caplog.records] == [
        "wandb could not go online (no route to host): the run is kept offline."
    ]


def test_a_dashboard_that_breaks_later_warns_once_and_is_still_closed(monkeypatch, caplog):
    session = Session()
    stand_in_wandb(monkeypatch, lambda **_: session)
    cfg, run = new_run("wandb")
    tracker = open_tracker(cfg, run)
    use(tracker)
    assert len(session.records) == 1 and session.closed
    assert len(caplog.records) == 1 and "the network is gone" in caplog.text
    assert (run.folder / "events.jsonl").read_text(encoding="utf-8").count("scalars") == 2


@pytest.mark.parametrize("logger", ["wandb", "tensorboard"])
def test_float_pictures_are_refused_since_they_would_be_black(logger, monkeypatch):
    stand_in_wandb(monkeypatch, lambda **_: Session())
    cfg, run = new_run(logger)
    with pytest.raises(TypeError, match="uint8"):
        open_tracker(cfg, run).images("samples", [np.zeros((8, 8, 3))], ["a dog"], 1)


def test_the_mode_of_wandb(tmp_path, monkeypatch):
    assert wandb_mode("auto") == "offline"
    assert wandb_mode("online") == "online"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password not-a-key\n", encoding="utf-8")
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.example")
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "oflline")
    with pytest.raises(UserError, match="WANDB_MODE=oflline is unknown"):
        wandb_mode("auto")


def test_disabled_wandb_is_no_tracker(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    cfg, run = new_run("wandb")
    assert type(open_tracker(cfg, run)) is tracking.NullTracker


def test_a_table_with_pictures_reaches_wandb():
    cfg, run = new_run("wandb")
    tracker = open_tracker(cfg, run)
    tracker.table(
        "evaluation/prompts", ["prompt", "image", "clip_t"], [["a dog", picture(), 0.3], ["a cat", None, None]]
    )
    tracker.finish()
    assert not tracker.broken
    [row] = [row for row in history(wandb_records(run.folder)) if any("evaluation/prompts" in key for key in row)]
    found = {key.rpartition("/")[2]: value for key, value in row.items()}
    found = found.get("prompts", found)
    assert (found["_type"], found["nrows"], found["ncols"]) == ("table-file", 2, 3)
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {
        "event": "table",
        "name": "evaluation/prompts",
        "columns": ["prompt", "image", "clip_t"],
        "rows": 2,
    }.items() <= (events[-1].items())


def test_a_resumed_run_goes_on_in_wandb_under_its_own_id():
    cfg, run = new_run("wandb")
    first = open_tracker(cfg, run)
    first.log({"loss/total": 1.0}, 10)
    first.finish()
    run.interrupt()
    again = Run.resume(run.folder, cfg, {"from_step": 10})
    second = open_tracker(cfg, again, 10)
    second.log({"loss/total": 0.5}, 20)
    second.finish()
    assert run.info["wandb_id"] == again.info["wandb_id"] == second.session.id
    files = sorted(run.folder.glob("wandb/*run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    assert len(files) == 2 and {file.stem for file in files} == {f"run-{second.session.id}"}


def test_a_resumed_run_draws_no_step_twice_in_tensorboard():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg, run = new_run("tensorboard")
    killed = open_tracker(cfg, run)
    for step in (10, 20, 30):
        killed.log({"loss/total": 1 / step}, step)
    killed.finish()
    run.interrupt()
    again = open_tracker(cfg, Run.resume(run.folder, cfg, {"from_step": 10}), 10)
    again.log({"loss/total": 7.0}, 20)
    again.finish()
    read = EventAccumulator(str(run.folder / "tensorboard"))
    read.Reload()
    assert [(scalar.step, scalar.value) for scalar in read.Scalars("loss/total")] == [
        (10, pytest.approx(0.1)),
        (20, 7.0),
    ]


def test_a_sweep_on_the_dashboard(sd15_folder, tmp_path, monkeypatch):
    """One run a job, grouped by the sweep, named by what was swept, with everything that docs/sweeps.md lists."""
    monkeypatch.setattr(evaluating, "open_metrics", lambda *_: [FakeScorer()])
    job = [word for word in words(sd15_folder, draw_pictures(tmp_path / "pictures")) if not word.startswith("logger=")]
    job += ["logger=wandb", "logger.mode=offline", "probes.every=2", "probes.attention=true", "evaluate.resamples=100"]
    job += ["train.then=[sample,evaluate]", "validation.every=4", "validation.steps=2", "images_per_prompt=1"]
    job += ["prompts=['a <new1> dog']", "protocol.prompts=['a red {}']", "protocol.live=[]", "train.steps=4"]
    assert main(["-m", *job, "loss.spl_weight=0,0.5", "name=weights"]) == 0
    for number, weight in enumerate(("0", "0.5")):
        records = wandb_records(Path(f"outputs/sweeps/weights/{number}-loss.spl_weight={weight}"))
        [begun] = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
        assert (begun.run_group, begun.display_name) == ("weights", f"spl_weight={weight}")
        sent = {item.key: json.loads(item.value_json) for item in begun.config.update}
        assert sent["loss.spl_weight"] == float(weight) and sent["concepts.folder.class_word"] is None
        rows = history(records)
        logged = {key: row["step"] for row in rows for key in row if "step" in row}
        wanted = "loss/total loss/recon loss/spl lr grad_norm images_per_second token_norm"
        drift = "drift/text_distance drift/token_norm drift/class_cosine"
        assert [name for name in f"{wanted} {drift}".split() if logged.get(name) != 4] == []
        assert [row["step"] for row in rows if "drift/text_distance" in row] == [0, 2, 4]
        assert [row["step"] for row in rows if "validation/captions" in row] == [0, 4]
        assert [row["step"] for row in rows if "attention/captions" in row] == [4]
        metrics = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
        assert any(m.glob_name == "*" and m.step_metric == "step" for m in metrics)
        table = next(
            Path("outputs/sweeps/weights").glob(f"{number}-*/wandb/*run-*/files/media/table/evaluation/samples*")
        )
        content = json.loads(table.read_text())
        assert content["columns"] == ["run", "prompt", "seed", "image", "clip_t", "clip_i"]
        assert len(content["data"]) == 2 and content["data"][0][1] == "a red <new1> dog"
        assert 0 < content["data"][0][4] < 1 and isinstance(content["data"][0][2], int)
        ends = [item for r in records if r.WhichOneof("record_type") == "summary" for item in r.summary.update]
        named = {(item.key or "/".join(item.nested_key)) for item in ends}
        assert {"evaluation/clip_t", "evaluation/clip_t_low", "final loss/recon"} <= named


OUT_OF_REACH = """
from cdiff import console, tracking
from cdiff.runs import Run
from cdiff.schema import Config, LoggerConfig

console.setup_logging()
tracking.WANDB_SECONDS = 3
cfg = Config(logger=LoggerConfig(name="wandb", mode="online"), output="run")
tracker = tracking.open_tracker(cfg, Run.start(cfg, "train"))
for step in (10, 20):
    tracker.log({"loss/total": 1 / step}, step)
tracker.finish()
"""


def test_a_server_that_is_not_there_is_said_once_and_the_run_is_kept():
    """Truly: wandb itself in a fresh process, logged in, with an address where nobody answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        command = [sys.executable, "-c", OUT_OF_REACH]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("Warning")]
    assert len(said) == 1 and "wandb could not go online" in said[0] and "Traceback" not in done.stderr
    rows = [row for records in _files_of("run") for row in history(records)]
    assert [row["loss/total"] for row in rows if "loss/total" in row] == [0.1, 0.05]


def _files_of(folder: str) -> list[list]:
    """Of each .wandb file: the attempt to go online may have left one too."""
    return [records_of(file) for file in sorted(Path(folder).glob("wandb/*run-*/*.wandb"))]


def test_clips_reach_wandb_as_videos(tmp_path):
    cfg, run = new_run("wandb")
    tracker = open_tracker(cfg, run)
    file = tmp_path / "a.gif"
    picture().save(file, save_all=True, append_images=[picture().rotate(90)])
    with pytest.raises(ValueError, match="1 clips of 'clips' came with 2 captions"):
        tracker.videos("clips", [file], ["a dog", "a cat"], step=0)
    tracker.videos("clips", [file], ["a dog running"], step=0)
    tracker.finish()
    assert not tracker.broken
    rows = [row for row in history(wandb_records(run.folder)) if "clips/_type" in row]
    assert [(row["clips/_type"], row["clips/captions"]) for row in rows] == [("videos", ["a dog running"])]
    [kept] = run.folder.glob("wandb/*run-*/files/media/videos/*.gif")
    assert kept.read_bytes() == file.read_bytes()
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["captions"] for event in events if event["event"] == "videos"] == [["a dog running"]]
