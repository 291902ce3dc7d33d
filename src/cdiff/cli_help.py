"""The page of `python -m cdiff --help`, made from what conf/ holds. Imports neither Hydra nor torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cdiff import catalog

EXAMPLES = (
    ("learn a dog and draw it, on a laptop", "python -m cdiff task=train concept=dog"),
    ("draw with what was learnt", "python -m cdiff task=sample run=latest \"prompt='a <new1> dog on the beach'\""),
    (
        "your own five photos, on a GPU",
        "python -m cdiff task=train model=sd15 concept=folder concept.images=~/photos/rex concept.class_word=dog",
    ),
    ("change a number, see what would be done", "python -m cdiff task=train loss.spl_weight=0.5 dry_run=true"),
    ("go on with a run that was stopped or killed", "python -m cdiff task=train resume=latest"),
    ("one run for each value", "python -m cdiff -m task=train loss.spl_weight=0,0.1,1 name=weights"),
)
OPTIONS = (
    ("-m, --multirun", "one run for every combination of the values a,b,c given"),
    ("--config-dir DIR", "a folder of your own YAML, laid out like conf/ (DIR/concept/rex.yaml)"),
    ("--cfg job", "print the composed configuration as YAML"),
    ("-sc install=bash", 'completion for the shell: eval "$(cdiff -sc install=bash)" (zsh: the same; fish)'),
    ("--version", "print the version"),
    ("--hydra-help", "Hydra's own options"),
)
QUOTING = "Text with < > , or ' needs two layers of quotes: \"prompt='a <new1> dog, wearing a hat'\""


def help_page(*config_dirs: Path) -> Group:
    """Usage, tasks, groups with their options, examples."""
    groups = catalog.groups(*config_dirs)
    parts: list[object] = [
        Text("cdiff: personalise text-to-image diffusion models without losing what they compose.\n"),
        Text.from_markup("[bold]Usage[/]  python -m cdiff task=TASK [GROUP=OPTION ...] [KEY=VALUE ...]\n"),
        _heading("Tasks"),
        _rows((f"task={name}", catalog.describe(file)) for name, file in groups.pop("task").items()),
        _heading("Groups"),
        _rows((f"{name}=", ", ".join(options)) for name, options in groups.items() if name != "recipe"),
        _unwrapped("  Any value of these files is set by its dotted name: train.steps=300 sampler.guidance_scale=4\n"),
        _heading("Examples"),
        *(_example(what, command) for what, command in EXAMPLES),
        _unwrapped(f"  {QUOTING}\n"),
        _heading("Options"),
        _rows(OPTIONS),
        Text("dry_run=true prints every setting and what would be done. A run writes to outputs/ and nowhere else."),
    ]
    return Group(*parts)


def _example(what: str, command: str) -> Text:
    return _unwrapped(f"  # {what}\n  {command}")


def _unwrapped(text: str) -> Text:
    """Commands stay on one line, so that they can be copied."""
    return Text(text, no_wrap=True, overflow="ignore")


def _heading(text: str) -> Text:
    return Text(text, style="bold")


def _rows(rows: object) -> Group:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, text in rows:
        table.add_row(Text(f"  {name}", style="cyan"), Text(text))
    return Group(table, Text(""))
