"""Imports go only down the list of the design, and the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import cdiff

ROOT = Path(cdiff.__file__).parent
# From the top to the bottom: a module imports from its own row and the rows below it.
LAYERS = (
    ("__main__",),
    ("cli", "cli_help"),
    ("sweep", "overrides"),
    ("sweep_jobs",),
    ("compose", "dispatch"),
    ("plan",),
    ("tasks", "notebook"),
    ("resuming",),
    ("report", "export"),
    ("evaluation",),
    ("drawing", "class_images", "probes", "video"),
    ("engine",),
    ("keeping", "stepping"),
    ("checkpoint", "snapshot"),
    ("window",),
    ("batches", "sampling", "grids", "drift", "attention_maps"),
    ("methods",),
    ("losses",),
    ("metrics",),
    ("data",),
    ("models",),
    ("base_files", "devices", "weights", "fused"),
    ("single_file",),
    ("tokens",),
    ("concepts", "token_adjust"),
    ("adapter", "tracking", "console", "execution"),
    ("sweep_folder",),
    ("finding",),
    ("runs",),
    ("pocket",),
    ("catalog", "checks", "convert", "merging", "cost", "memory", "frame_attention"),
    ("ranges",),
    ("schema", "suggest", "cache", "shared", "gpus", "displacement", "frame_noise", "pixels"),
    ("locks", "processes", "storage", "untrusted", "hub", "provenance"),
    ("errors", "signals"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LIGHT = (
    "__main__ cli cli_help sweep sweep_jobs sweep_folder shared gpus cost memory "
    "overrides compose dispatch plan catalog checks ranges convert schema suggest errors runs "
    "tracking console resuming signals locks processes storage untrusted hub provenance"
)
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "wandb", "peft", "datasets"}


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").parts[0]


def _is_for_types(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(file: Path, top_level_only: bool = False) -> set[str]:
    """Full names of all modules that a file imports; relative imports are resolved."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {id(inner) for node in ast.walk(tree) if _is_for_types(node) for inner in ast.walk(node)}
    nodes = [node for node in (tree.body if top_level_only else ast.walk(tree)) if id(node) not in for_types]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide what is imported"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "cdiff" else {node.module}
            )
    return found


def test_every_module_has_a_place_in_the_list():
    parts = {part_of(file) for file in ROOT.rglob("*.py") if part_of(file) != "__init__"}
    assert parts <= set(RANK), f"not in LAYERS: {sorted(parts - set(RANK))}"


def test_imports_go_only_down_the_list():
    wrong = []
    for file in ROOT.rglob("*.py"):
        part = part_of(file)
        if part == "__init__":
            continue
        for name in imports_of(file):
            words = name.split(".")
            if words[0] == "cdiff" and len(words) > 1 and words[1] in RANK and RANK[words[1]] < RANK[part]:
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_only_the_pretrain_task_knows_the_inside_of_pocket():
    wrong = []
    for file in ROOT.rglob("*.py"):
        inside = part_of(file) == "pocket" or file.relative_to(ROOT).as_posix() == "tasks/pretrain.py"
        deep = [name for name in imports_of(file) if name.startswith("cdiff.pocket.")]
        if deep and not inside:
            wrong.append(f"{file.relative_to(ROOT)} imports {', '.join(deep)}")
    assert not wrong, "\n".join(wrong)


def test_light_modules_import_nothing_heavy_at_the_top():
    files = [ROOT / f"{name}.py" for name in LIGHT.split()] + [ROOT / "tasks" / "__init__.py"]
    wrong = [f"{f.name}: {n}" for f in files for n in imports_of(f, top_level_only=True) if n.split(".")[0] in HEAVY]
    assert not wrong, "\n".join(wrong)


def test_help_and_a_dry_run_import_neither_torch_nor_diffusers():
    script = (
        "import sys\nfrom cdiff.cli import main\n"
        "assert main(['--help']) == 0 and main(['dry_run=true']) == 0\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
