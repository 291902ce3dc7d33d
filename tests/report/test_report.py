"""The report of a true sweep: its numbers against the rows, its page as a browser would read it."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cdiff.cli import main
from cdiff.evaluation.rows import read_rows
from cdiff.report.figures import make_figures, mean_curve, pareto, pca
from cdiff.report.page import alone, template_of
from cdiff.report.pictures import Embedder
from cdiff.report.study import read_study
from cdiff.report.tables import make_tables


class Reader(HTMLParser):
    """What the tests ask of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[dict] = []
        self.graphics: list[dict] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        if tag == "img":
            self.images.append(found)
        if tag == "svg":
            self.graphics.append(found)
        if tag == "a":
            self.links.append(found["href"])
        named = ("src", "href", "xlink:href", "action", "data", "poster")
        self.loaded += [v for k, v in found.items() if k in named and v and not v.startswith(("#", "data:"))]


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    assert main(["task=report", f"run={sweep}", f"output={folder}"]) == 0
    return folder


def means_of_rows(run: Path) -> dict[str, float]:
    """clip_t and clip_i of a run from its per-image rows: per prompt first, then over prompts."""
    rows = [row for row in read_rows(next(run.glob("evaluation/*/rows.csv"))) if not row.fault]
    prompts = {row.prompt for row in rows}
    return {
        name: sum(
            sum(r.values[name] for r in rows if r.prompt == p) / sum(r.prompt == p for r in rows) for p in prompts
        ) / len(prompts)
        for name in ("clip_t", "clip_i")
    }  # fmt: skip


def test_the_numbers_are_those_of_the_rows(report, sweep):
    runs = pd.read_csv(report / "runs.csv")
    assert runs["run"].tolist() == [f"spl_weight={w} seed={s}" for w in (0, 10) for s in (1, 2)]
    by_hand = [means_of_rows(Path(folder)) for folder in runs["folder"]]
    for name in ("clip_t", "clip_i"):
        assert runs[name].tolist() == pytest.approx([one[name] for one in by_hand])
        assert (runs[f"{name}_low"] <= runs[name]).all() and (runs[name] <= runs[f"{name}_high"]).all()
    settings = pd.read_csv(report / "settings.csv").set_index("setting")
    assert settings.index.tolist() == ["spl_weight=0", "spl_weight=10"] and settings["runs"].tolist() == [2, 2]
    expected = (by_hand[0]["clip_t"] + by_hand[1]["clip_t"]) / 2
    assert settings.loc["spl_weight=0", "clip_t"] == pytest.approx(expected)


def test_differences_are_paired_by_seed(sweep):
    study = read_study([sweep])
    tables = make_tables(study)
    assert tables.baseline == "spl_weight=0"
    [row] = tables.differences.to_dict("records")
    by_hand = {run.label: means_of_rows(run.folder)["clip_t"] for run in study.runs}
    pairs = [by_hand[f"spl_weight=10 seed={seed}"] - by_hand[f"spl_weight=0 seed={seed}"] for seed in (1, 2)]
    assert row["setting"] == "spl_weight=10" and row["pairs"] == 2
    assert row["clip_t"] == pytest.approx(sum(pairs) / 2)
    assert min(pairs) - 1e-9 <= row["clip_t_low"] <= row["clip_t_high"] <= max(pairs) + 1e-9


def test_what_is_not_finished_and_what_is_foreign_is_told(report, capsys):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "4-loss.spl_weight=0,seed=3</th><td>dead</td><td>killed before it ended" in page
    assert "notes" in page and "7-broken/run.json is damaged" in page.replace("&#39;", "'")
    log = (report / "log.txt").read_text(encoding="utf-8")
    assert "not in any average: 4-loss.spl_weight=0,seed=3 (dead)" in log


def test_the_page_needs_nothing_beside_it(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    assert reader.loaded == [] and "@import" not in page and "url(http" not in page
    assert "fetch(" not in page and "XMLHttpRequest" not in page
    assert len(page.encode()) < 20_000_000


def test_pictures_and_plots_have_words_for_a_screen_reader(report):
    reader = Reader((report / "report.html").read_text(encoding="utf-8"))
    assert len(reader.images) >= 2 * 3 * 2 and all(image.get("alt", "").strip() for image in reader.images)
    assert len(reader.graphics) >= 6
    assert all(one.get("role") == "img" and len(one.get("aria-label", "")) > 20 for one in reader.graphics)
    twice = {name for name in reader.ids if reader.ids.count(name) > 1}
    assert not twice, "an id stands for one element"
    assert {link[1:] for link in reader.links} <= set(reader.ids), "every section that is linked is there"


def test_every_section_is_there(report):
    reader = Reader((report / "report.html").read_text(encoding="utf-8"))
    sections = "settings runs grid alignment drift projection attention viewer losses commands environment".split()
    assert [name for name in sections if name not in reader.ids] == []


def test_the_viewer_holds_every_run_on_the_same_prompts(report, sweep):
    page = (report / "report.html").read_text(encoding="utf-8")
    text = page.split('id="viewer-data">')[1].split("</script>")[0]
    assert "<" not in text
    data = json.loads(text)
    assert [run["label"] for run in data["runs"]] == [run.label for run in read_study([sweep]).runs]
    assert data["prompts"] == ["a {} on the beach", "a red {}"]
    for run in data["runs"]:
        assert set(run["pictures"]) == set(data["prompts"])
        uri, prompt, _ = run["pictures"]["a red {}"]
        assert uri.startswith("data:image/webp;base64,") and prompt == "a red <new1> dog"
    assert data["right"] == 2, "at first the two weights at one seed"


def test_the_command_of_one_run_alone_makes_that_run(sweep):
    study = read_study([sweep])
    command = alone(study.runs[-1], study)
    assert command.startswith("python -m cdiff ") and " -m " not in command[12:] and "name=" not in command
    assert "loss.spl_weight=10" in command and "seed=2" in command and "0,10" not in command


def test_the_tables_read_back(report):
    markdown = (report / "table.md").read_text(encoding="utf-8")
    assert "| spl_weight=10 " in markdown and "## Difference from spl_weight=0, paired by concept and seed" in markdown
    latex = (report / "table.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{tabular}") == 3 == latex.count(r"\end{tabular}") and r"spl\_weight=10" in latex
    with (report / "runs.csv").open(encoding="utf-8") as file:
        assert all(math.isfinite(float(row["clip_t"])) for row in csv.DictReader(file))


def test_two_runs_without_a_sweep(sweep, tmp_path):
    runs = sorted(sweep.glob("[01]-*"))
    shutil.rmtree(shutil.copytree(sweep, tmp_path / "copy") / "notes")
    assert main(["task=report", f"run=['{runs[0]}','{runs[1]}']", "output=out"]) == 0
    assert len(pd.read_csv("out/runs.csv")) == 2


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [("run=nowhere", "There is no folder nowhere"), ("run=empty", "empty holds no run"),
     ("run=dead", "is finished: there is nothing to report; 1 are not: 4-loss")],
)  # fmt: skip
def test_a_folder_without_a_finished_run(spec, sentence, sweep, capsys):
    Path("empty").mkdir()
    shutil.copytree(next(sweep.glob("4-*")), Path("dead") / "4-loss")
    assert main(["task=report", spec, "output=out"]) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert not Path("out").exists()


def test_a_report_imports_no_torch():
    script = "import sys, cdiff.tasks.report, cdiff.report.page, cdiff.report.figures\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


# --- parts ----------------------------------------------------------------------------------------------------------


def test_the_pareto_front():
    points = [(0.1, 0.9, "a"), (0.5, 0.5, "b"), (0.4, 0.4, "beaten"), (0.9, 0.1, "c"), (0.5, 0.3, "beaten too")]
    assert [name for *_, name in pareto(points)] == ["a", "b", "c"]


def test_pca_is_the_plane_of_most_variance():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(2, 32))
    points = 30 * rng.normal(size=32) + rng.normal(size=(40, 2)) * [3, 1] @ plane + 0.01 * rng.normal(size=(40, 32))
    project = pca(points)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    values = np.linalg.svd(unit - unit.mean(axis=0), compute_uv=False)
    assert np.allclose((project(points) ** 2).sum(axis=0), values[:2] ** 2)
    assert np.allclose(project(points), pca(points[::-1].copy())(points))


def test_a_mean_curve_takes_the_steps_that_all_have():
    assert mean_curve([[(0, 1.0), (10, 3.0)], [(0, 3.0), (10, 5.0), (20, 9.0)]]) == ([0, 10], [2.0, 4.0])


def test_pictures_shrink_to_the_budget(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for number in range(20):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 255, (256, 256, 3), np.uint8)).save(files[-1])
    roomy, narrow = Embedder(files, 50), Embedder(files, 0.2)
    assert roomy.side == 256 and narrow.side < 128
    shown = [narrow(file) for file in files]
    assert sum(len(uri or "") for uri in shown) <= 0.2e6 and narrow.dropped == shown.count(None)
    assert roomy(tmp_path / "none.png") is None and roomy.dropped == 0


def test_prompts_of_different_concepts_line_up(sweep):
    run = read_study([sweep]).runs[0]
    assert template_of("a <new1> dog in the snow", run) == "a {} in the snow"
    assert template_of("a dog in the snow", run) == "a dog in the snow"


def test_plots_take_the_pages_colours(sweep):
    study = read_study([sweep])
    plots = [plot for some in make_figures(study, make_tables(study), None, None).values() for plot in some]
    assert all("currentColor" in plot.svg and "#010203" not in plot.svg for plot in plots)
    drift = next(plot for plot in plots if "Distance" in plot.title)
    ends = {run.setting: run.scalars["drift/text_distance"][-1][1] for run in study.runs if run.seed == 2}
    assert "spl_weight=0 ends at" in drift.alt and "spl_weight=10 ends at" in drift.alt and len(ends) == 2
