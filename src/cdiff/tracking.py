"""Where numbers and pictures go while a run works: wandb, TensorBoard, or nowhere; always to events.jsonl too.

A tracker never stops a training: what it can't do it says once, and goes on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from cdiff import processes
from cdiff.convert import flat, to_dict
from cdiff.errors import UserError
from cdiff.runs import Run
from cdiff.schema import Config

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)
WANDB_MODES = ("online", "offline", "disabled")
WANDB_SECONDS = 20.0  # that a server has to answer before the run is kept offline


class Tracker:
    """Writes to the run's events.jsonl; the other trackers do this and more. Also the tracker of logger=none."""

    def __init__(self, run: Run | None = None) -> None:
        self.run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Scalars by name ("loss/total") at a training step."""
        self._event({"event": "scalars", "step": step, **values})

    def images(self, name: str, images: Sequence[Image], captions: Sequence[str], step: int) -> None:
        """Pictures of one kind at a training step: PIL, or uint8 arrays (height, width, 3)."""
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images of '{name}' came with {len(captions)} captions")
        self._event({"event": "images", "step": step, "name": name, "captions": list(captions)})

    def videos(self, name: str, files: Sequence[Path], captions: Sequence[str], step: int) -> None:
        """Clips of one kind, as GIF files (played by wandb alone)."""
        if len(files) != len(captions):
            raise ValueError(f"{len(files)} clips of '{name}' came with {len(captions)} captions")
        self._event({"event": "videos", "step": step, "name": name, "captions": list(captions)})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table by name; a cell is a number, a text, null or a PIL image (shown by wandb alone)."""
        self._event({"event": "table", "name": name, "columns": list(columns), "rows": len(rows)})

    def summary(self, values: Mapping[str, Any]) -> None:
        """What the run reached in the end."""
        self._event({"event": "summary", **values})

    def finish(self) -> None:
        """Flush and close; called once, also after an error."""

    def _event(self, record: dict[str, Any]) -> None:
        if self.run is not None:
            self.run.event(record)


class NullTracker(Tracker):
    """No dashboard: events.jsonl alone."""


def _never_stop(method: Callable) -> Callable:
    """A dashboard's failure becomes one warning; the run goes on without it."""

    @functools.wraps(method)
    def guarded(self: Any, *arguments: Any, **named: Any) -> None:
        if self.broken:
            return
        try:
            method(self, *arguments, **named)
        except Exception as error:
            self.broken = True
            log.warning("%s stopped working (%s); the run goes on without it.", type(self).__name__, _first_line(error))

    return guarded


class WandbTracker(Tracker):
    """Weights & Biases; its files stay in the run's folder. Opened by `open_tracker`."""

    def __init__(self, run: Run, session: Any) -> None:
        super().__init__(run)
        self.session, self.broken = session, False
        session.define_metric("step", hidden=True)
        session.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        super().log(values, step)
        self._send({**values, "step": step})

    def images(self, name: str, images: Sequence[Image], captions: Sequence[str], step: int) -> None:
        super().images(name, images, captions, step)
        self._send_images(name, [as_pil(image) for image in images], captions, step)

    def videos(self, name: str, files: Sequence[Path], captions: Sequence[str], step: int) -> None:
        super().videos(name, files, captions, step)
        self._send_videos(name, files, captions, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        super().summary(values)
        self._summarise(values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        super().table(name, columns, rows)
        self._send_table(name, columns, rows)

    @_never_stop
    def _send_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb
        from PIL.Image import Image

        cells = [[wandb.Image(cell) if isinstance(cell, Image) else cell for cell in row] for row in rows]
        self.session.log({name: wandb.Table(columns=list(columns), data=cells, allow_mixed_types=True)})

    @_never_stop
    def _send(self, record: dict[str, Any]) -> None:
        self.session.log(record)

    @_never_stop
    def _send_images(self, name: str, images: list[Image], captions: Sequence[str], step: int) -> None:
        import wandb

        pictures = [wandb.Image(image, caption=caption) for image, caption in zip(images, captions)]
        self.session.log({name: pictures, "step": step})

    @_never_stop
    def _send_videos(self, name: str, files: Sequence[Path], captions: Sequence[str], step: int) -> None:
        import wandb

        clips = [wandb.Video(str(file), caption=caption, format="gif") for file, caption in zip(files, captions)]
        self.session.log({name: clips, "step": step})

    @_never_stop
    def _summarise(self, values: Mapping[str, Any]) -> None:
        self.session.summary.update(dict(values))

    def finish(self) -> None:
        self.broken = False  # also a run that broke is closed
        self._close()

    @_never_stop
    def _close(self) -> None:
        self.session.finish()


class TensorBoardTracker(Tracker):
    """TensorBoard files under RUN/tensorboard."""

    def __init__(self, run: Run, writer: Any) -> None:
        super().__init__(run)
        self.writer, self.broken = writer, False

    def log(self, values: Mapping[str, float], step: int) -> None:
        super().log(values, step)
        self._send(values, step)

    def images(self, name: str, images: Sequence[Image], captions: Sequence[str], step: int) -> None:
        super().images(name, images, captions, step)
        self._send_images(name, [as_pil(image) for image in images], captions, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        super().summary(values)
        self._summarise(values)

    @_never_stop
    def _send(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    @_never_stop
    def _send_images(self, name: str, images: list[Image], captions: Sequence[str], step: int) -> None:
        import numpy as np

        for i, (image, caption) in enumerate(zip(images, captions)):
            self.writer.add_image(f"{name}/{i} {caption}", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    @_never_stop
    def _summarise(self, values: Mapping[str, Any]) -> None:
        lines = [f"- {name}: {value}" for name, value in values.items()]
        self.writer.add_text("summary", "\n".join(lines))

    @_never_stop
    def finish(self) -> None:
        self.writer.close()


def open_tracker(cfg: Config, run: Run, start: int = 0) -> Tracker:
    """The tracker of `logger=`; when it can't work, a warning and a NullTracker. A resumed run goes on from `start`."""
    if not processes.is_first():
        return NullTracker(run)  # whose run writes nothing
    if cfg.logger.name == "wandb":
        return _open_wandb(cfg, run)
    if cfg.logger.name == "tensorboard":
        return _open_tensorboard(run, start)
    return NullTracker(run)


def wandb_mode(wanted: str) -> str:
    """The mode of wandb: `logger.mode` unless it is auto, else WANDB_MODE, else online for who is logged in."""
    if wanted != "auto":
        return wanted
    mode = os.environ.get("WANDB_MODE", "")
    if mode:
        if mode not in WANDB_MODES:
            raise UserError(f"WANDB_MODE={mode} is unknown; there is: {', '.join(WANDB_MODES)}.")
        return mode
    return "online" if _logged_in() else "offline"


def as_pil(image: Any) -> Image:
    """PIL as it is, uint8 (height, width, 3) turned into PIL; anything else would be shown wrongly and is refused."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if getattr(image, "dtype", None) is None or str(image.dtype).removeprefix("torch.") != "uint8":
        kind = getattr(image, "dtype", type(image).__name__)
        raise TypeError(f"a tracker takes PIL images or uint8 arrays (height, width, 3), got {kind}")
    return Image.fromarray(image if not hasattr(image, "numpy") else image.numpy())


def _open_wandb(cfg: Config, run: Run) -> Tracker:
    mode = wandb_mode(cfg.logger.mode)
    if mode == "disabled":
        return NullTracker(run)
    try:
        import wandb
    except ImportError as error:
        log.warning("wandb can't be imported (%s): nothing goes to a dashboard.", _first_line(error))
        return NullTracker(run)
    try:
        return _wandb_tracker(wandb, cfg, run, mode)
    except Exception as error:
        if mode == "offline":
            log.warning("wandb could not start (%s): nothing goes to a dashboard.", _first_line(error))
            return NullTracker(run)
        log.warning("wandb could not go online (%s): the run is kept offline.", _first_line(error))
    try:
        return _wandb_tracker(wandb, cfg, run, "offline")
    except Exception as error:
        log.warning("wandb could not start (%s): nothing goes to a dashboard.", _first_line(error))
        return NullTracker(run)


def _wandb_tracker(wandb: Any, cfg: Config, run: Run, mode: str) -> Tracker:
    session = _wandb_session(wandb, cfg, run, mode)
    if run.info.get("wandb_id") is None and getattr(session, "id", None):
        run.note(wandb_id=session.id)
    return WandbTracker(run, session)


def run_name(cfg: Config, run: Run) -> str:
    """How a dashboard calls the run: a job of a sweep by what was swept, others by the last parts of their folder."""
    swept = [f"{key.split('.')[-1]}={value}" for key, value in cfg.sweep.swept.items()]
    return " ".join(swept) or "-".join(run.folder.parts[-3:])


def _wandb_session(wandb: Any, cfg: Config, run: Run, mode: str) -> Any:
    logger = cfg.logger
    settings = wandb.Settings(silent=True, console="off", save_code=False, init_timeout=WANDB_SECONDS)
    return wandb.init(
        project=logger.project,
        entity=logger.entity,
        group=logger.group or cfg.sweep.name or cfg.name,
        tags=logger.tags or None,
        name=run_name(cfg, run),
        job_type=run.info["task"],
        config=flat(to_dict(cfg)),
        dir=str(run.folder.absolute()),
        mode=mode,
        settings=settings,
        reinit="finish_previous",
        id=run.info.get("wandb_id"),  # of a resumed run: its curves go on
        resume="allow" if run.info.get("wandb_id") else None,
    )


def _open_tensorboard(run: Run, start: int) -> Tracker:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning('TensorBoard is missing (pip install "cdiff[tensorboard]"): nothing goes to a dashboard.')
        return NullTracker(run)
    again = start + 1 if run.info.get("resumed") else None  # what a killed process logged later is drawn once
    return TensorBoardTracker(run, SummaryWriter(str(run.folder / "tensorboard"), purge_step=again))


def _logged_in() -> bool:
    """Whether wandb would find an API key: WANDB_API_KEY, or its host in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(name).expanduser() for name in files if name):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(str(file)).authenticators(host):
                return True
    return False


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
