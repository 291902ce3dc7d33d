"""The plots of a report, by matplotlib, as SVG that takes the page's text colour: readable in light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cdiff.report.study import RunRecord, Study
from cdiff.report.tables import Tables, by_setting

INK = "#010203"  # stands for the page's text colour
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#888888",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "cdiff",  # the same report twice is the same file
}
# Okabe and Ito's colours, that people with colour blindness tell apart; two lightened for a dark page.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c6bb1", "#7f7f7f", "#e31a1c", "#33a02c")
MARKERS = "os^Dvp*Xhd"
TEXT_METRICS = ("clip_t", "blip2_t")
IMAGE_METRICS = ("recognized", "dino_i", "clip_i")
LEGEND = 12  # entries; more would hide the plot


@dataclass(frozen=True)
class Plot:
    """An SVG element, with the words that a screen reader says in its place."""

    title: str
    svg: str
    alt: str


def make_figures(study: Study, tables: Tables, text: str | None, image: str | None) -> dict[str, list[Plot]]:
    """Section -> its plots; a section without data has none."""
    text = text or next((name for name in TEXT_METRICS if name in study.metrics), None)
    image = image or next((name for name in IMAGE_METRICS if _varies(tables, name)), None)
    attributes = [name for name in study.metrics if name.startswith("attr_") and _varies(tables, name)]
    found: dict[str, list[Plot]] = {"alignment": [], "drift": [], "losses": [], "projection": []}
    if text and image and text in study.metrics and image in study.metrics:
        found["alignment"].append(alignment(study, tables, text, image))
    for name in attributes:
        if image and image in study.metrics:
            found["alignment"].append(alignment(study, tables, name, image))
    for name, title in (
        ("drift/text_distance", "Distance of “<new1> class” from the class in text features"),
        ("drift/class_cosine", "Cosine of the token's embedding with the class word's"),
        ("drift/token_norm", "Length of the token's embedding"),
    ):
        if plot := curves(study, name, title):
            found["drift"].append(plot)
    for name, title in (
        ("loss/recon", "Reconstruction loss"),
        ("loss/spl", "Semantic preservation loss, unweighted"),
        ("loss/prior", "Prior loss"),
        ("grad_norm", "Norm of the gradient"),
    ):
        if plot := curves(study, name, title, smooth=name in ("loss/recon", "loss/prior", "grad_norm")):
            found["losses"].append(plot)
    found["projection"] = projections(study)
    return found


def _varies(tables: Tables, metric: str) -> bool:
    """Whether the runs differ in a metric: an axis on which all of them stand at 0 shows nothing."""
    return metric in tables.runs and tables.runs[metric].nunique() > 1


def alignment(study: Study, tables: Tables, text: str, image: str) -> Plot:
    """Settings as points with their intervals, runs as small ones; the settings that no other beats in both joined."""
    colours = _colours(study)
    points: list[tuple[float, float, str]] = []

    def draw(axes: Axes) -> None:
        for place, (setting, runs) in enumerate(by_setting(study.runs).items()):
            both = [
                (r.overall[image]["mean"], r.overall[text]["mean"]) for r in runs if {image, text} <= set(r.overall)
            ]
            if not both:
                continue
            axes.scatter(*zip(*both), s=18, alpha=0.45, color=colours[setting], linewidths=0)
            row = tables.settings[tables.settings["setting"] == setting].iloc[0]
            x, y = row[image], row[text]
            error = {"xerr": _bars(row, image), "yerr": _bars(row, text)}
            axes.errorbar(
                [x],
                [y],
                **error,
                fmt=MARKERS[place % len(MARKERS)],
                ms=8,
                color=colours[setting],
                lw=1.2,
                label=setting,
            )
            points.append((x, y, setting))
        front = pareto(points)
        if len(front) > 1:
            axes.plot(*zip(*[(x, y) for x, y, _ in front]), ls="--", lw=1, color=INK, alpha=0.6, zorder=0)
        axes.set_xlabel(f"{image}: image alignment →")
        axes.set_ylabel(f"{text}: text alignment →")

    svg = _svg(draw, legend=True)
    best = ", ".join(f"{setting} ({image} {x:.3f}, {text} {y:.3f})" for x, y, setting in pareto(points))
    return Plot(f"{text} against {image}", svg, f"Scatter plot of {len(points)} settings. On the Pareto front: {best}.")


def pareto(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Those that no other point beats in one coordinate without being worse in the other, from left to right."""
    best: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda p: (-p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def curves(study: Study, name: str, title: str, smooth: bool = False) -> Plot | None:
    """A logged number against the step: each run thin, the mean of each setting thick."""
    colours, has, ends = _colours(study), False, []

    def draw(axes: Axes) -> None:
        nonlocal has
        for setting, runs in by_setting(study.runs).items():
            series = [s for run in runs for s in _series(run, name)]
            for one in series:
                steps, values = zip(*one)
                shown = _smoothed(values) if smooth else values
                axes.plot(steps, shown, lw=0.7, alpha=0.35 if len(series) > 1 else 0, color=colours[setting])
            if series:
                steps, means = mean_curve(series)
                axes.plot(steps, _smoothed(means) if smooth else means, lw=2, color=colours[setting], label=setting)
                ends.append(f"{setting} ends at {means[-1]:.4g}")
                has = True
        axes.set_xlabel("training step")
        axes.set_ylabel(name)

    svg = _svg(draw, legend=True)
    smoothed = " Smoothed over five logged values." if smooth else ""
    return Plot(title, svg, f"Line plot of {title} by step: {'; '.join(ends)}.{smoothed}") if has else None


def _series(run: RunRecord, name: str) -> list[list[tuple[int, float]]]:
    """The number by that name, or those of several concepts ("drift/text_distance/dog")."""
    return [values for key, values in run.scalars.items() if key == name or key.startswith(f"{name}/")]


def mean_curve(series: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    """The mean at the steps that all of them have, or of those that have a step where they share none."""
    each = [dict(one) for one in series]
    steps = sorted(set.intersection(*map(set, each))) or sorted(set.union(*map(set, each)))
    return steps, [float(np.mean([one[step] for one in each if step in one])) for step in steps]


def _smoothed(values: Sequence[float], width: int = 5) -> np.ndarray:
    """Running mean over the values so far, at most `width`: a single timestep's loss says little."""
    array = np.asarray(values, float)
    return np.array([array[max(0, i + 1 - width) : i + 1].mean() for i in range(len(array))])


def projections(study: Study) -> list[Plot]:
    """A plot a concept: PCA of "[adjective] dog" phrases, and the way of "<new1> dog" from before training to after."""
    colours, plots, done = _colours(study), [], set()
    for first in study.runs:
        for name in [] if first.phrases is None else first.phrases["concepts"].tolist():
            if name in done:
                continue
            done.add(name)
            ways = [
                (run.setting, run.phrases["features"][:, run.phrases["concepts"].tolist().index(name)])
                for run in study.runs
                if run.phrases is not None and name in run.phrases["concepts"].tolist()
            ]
            at = first.phrases["concepts"].tolist().index(name)
            phrases = first.phrases["class_features"][at].astype(float)
            words = first.phrases["words"].tolist()
            plots.append(_projection(name, str(first.phrases["class_words"][at]), words, phrases, ways, colours))
    return plots


def pca(features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The plane of most variance of features (N, D) of length 1; returns the projection (M, D) -> (M, 2)."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = unit.mean(axis=0)
    axes = np.linalg.svd(unit - mean, full_matrices=False)[2][:2]
    axes *= np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]  # else the picture may be mirrored
    return lambda more: (more / np.linalg.norm(more, axis=1, keepdims=True) - mean) @ axes.T


def _projection(name, class_word, words, phrases, ways, colours) -> Plot:
    # The plane must hold the ways too: a drift at right angles to all adjectives would look like none.
    seen = [way.astype(float)[[0, -1]] for _, way in ways]
    project = pca(np.concatenate([phrases, *seen]))
    places = project(phrases)

    def draw(axes: Axes) -> None:
        axes.scatter(*places[1:].T, s=9, color="#888888", alpha=0.7, linewidths=0)
        for word, (x, y) in list(zip(words, places))[1::3]:
            axes.annotate(word, (x, y), fontsize=7, alpha=0.75, xytext=(2, 2), textcoords="offset points")
        axes.scatter(*places[:1].T, marker="*", s=140, color=INK, zorder=5, label=class_word)
        named = set()
        for setting, way in ways:
            line = project(way.astype(float))
            axes.plot(*line.T, lw=1, color=colours[setting], alpha=0.7)
            axes.scatter(*line[:1].T, s=22, facecolors="none", edgecolors=colours[setting], zorder=4)
            axes.scatter(
                *line[-1:].T, s=30, color=colours[setting], zorder=6, label=None if setting in named else setting
            )
            named.add(setting)
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second")

    distances = {setting: float(_distance(way[-1], phrases[0])) for setting, way in ways}
    told = ", ".join(f"{setting} {distance:.3f}" for setting, distance in distances.items())
    alt = f"Phrases of {class_word} with adjectives, and the concept before (ring) and after (dot). Distance from the "
    return Plot(f"{name}: “[adjective] {class_word}” in text features", _svg(draw, True), f"{alt}class after: {told}.")


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    return 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def _colours(study: Study) -> dict[str, str]:
    """A colour a setting; shades of one ramp where there are more than the list has."""
    settings = list(by_setting(study.runs))
    if len(settings) <= len(COLOURS):
        return dict(zip(settings, COLOURS))
    ramp = matplotlib.colormaps["turbo"](np.linspace(0.08, 0.92, len(settings)))
    return {setting: matplotlib.colors.to_hex(colour) for setting, colour in zip(settings, ramp)}


def _bars(row, metric: str) -> list[list[float]] | None:
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return None if low is None or np.isnan(low) else [[row[metric] - low], [high - row[metric]]]


def _svg(draw: Callable[[Axes], None], legend: bool) -> str:
    """The drawing as one <svg> element without fixed size, INK turned into the page's colour."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")  # no pyplot: nothing global, no window
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        entries = axes.get_legend_handles_labels()[1]
        if legend and 0 < len(entries) <= LEGEND:
            axes.legend(fontsize=8, loc="best")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S).strip()


def described(plot: Plot, number: int) -> str:
    """The SVG with its words for a screen reader; ids made unique, since many of them stand in one page."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="p{number}-\1"', plot.svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>p{number}-", svg)
    label = html.escape(f"{plot.title}. {plot.alt}", quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
