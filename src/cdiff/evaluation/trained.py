"""train.then=[evaluate]: the evaluation of a run that has just been trained, its model still in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdiff.data.images import read_folder
from cdiff.devices import process_device
from cdiff.errors import UserError
from cdiff.evaluation.drawn import adapter_digest
from cdiff.evaluation.evaluating import Scoring, evaluate_run, open_scoring
from cdiff.evaluation.protocol import read_cases
from cdiff.evaluation.tables import show_result, track
from cdiff.schema import Config

if TYPE_CHECKING:
    from cdiff.concepts import Concept
    from cdiff.models import Base
    from cdiff.tracking import Tracker


def check_evaluation(cfg: Config, concepts: Sequence[Concept]) -> Scoring:
    """The metrics for `evaluate_trained`; what is wrong with the evaluation is said before the training, not after it.

    Raises:
        UserError: no prompts for these concepts, no metrics, or an objective that is not measured.
    """
    read_cases(cfg.protocol, concepts)
    scoring = open_scoring(cfg, cfg.model.world, process_device(cfg.device), with_references=True)
    if cfg.evaluate.objective not in scoring.metrics:
        raise UserError(
            f"evaluate.objective={cfg.evaluate.objective} is not measured here; there is {', '.join(scoring.metrics)}: "
            f"evaluate.objective={scoring.metrics[0]}."
        )
    return scoring


def evaluate_trained(
    cfg: Config, base: Base, concepts: Sequence[Concept], folder: Path, scoring: Scoring, tracker: Tracker
) -> dict[str, Any]:
    """Evaluate the run in `folder`, whose adapter is written and whose trained weights `base` holds.

    Returns:
        For the run's result: `evaluation` (its folder), `overall` (metric -> mean) and the `objective` of a sweeper.
    """
    pictures = {concept.name: read_folder(concept.folder) for concept in concepts}
    name = "/".join(folder.absolute().parts[-3:])
    facts = {"name": name, "run": str(folder.absolute()), "method": cfg.method.name, "setting": cfg.method.name}
    made = adapter_digest(folder / "adapter")
    result = evaluate_run(cfg, concepts, pictures, folder, scoring, lambda: base, made, facts)
    if result is None:
        return {}  # another process scores
    show_result(result)
    track(tracker, [result], None)
    overall = {name: one.mean for name, one in result.summary.overall().items()}
    return {"evaluation": str(result.folder), "overall": overall, "objective": overall.get(cfg.evaluate.objective)}
