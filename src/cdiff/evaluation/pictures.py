"""The real pictures that an evaluation compares with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdiff.data.images import Picture, read_folder
from cdiff.errors import UserError
from cdiff.evaluation.evaluating import Scoring
from cdiff.schema import Config

if TYPE_CHECKING:
    from cdiff.evaluation.runs import TrainedSubject
    from cdiff.runs import Run


def given_pictures(cfg: Config) -> list[Picture]:
    """Those of `references=`."""
    folders = cfg.references if isinstance(cfg.references, list) else [cfg.references] if cfg.references else []
    return [picture for folder in folders for picture in read_folder(folder)]


def pictures_of_run(
    cfg: Config, run: Run, subjects: Sequence[TrainedSubject], scoring: Scoring
) -> dict[str, list[Picture]]:
    """Concept -> its real pictures: those of `references=`, else the ones the run was trained on.

    Raises:
        UserError: there are none, and a metric compares with them.
    """
    if not any(scorer.needs_references for scorer in scoring.scorers):
        return {}
    given = given_pictures(cfg)
    if given and len(subjects) > 1:
        raise UserError(f"references= is for one concept, and {run.folder} has {len(subjects)}: leave it out.")
    if given:
        return {subjects[0].name: given}
    try:
        return {subject.name: read_folder(subject.pictures()) for subject in subjects}
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}: these are the reference pictures of {run.folder}; give them as references=DIR, "
            "or leave image metrics out, metrics.names=[clip_t]."
        ) from error
