"""Data flows one way: a module imports only from its own layer's package or from layers above it."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "rprm"

#: Layer by layer, from the top; see docs/architecture.md. A package stands for all modules in it.
LAYERS = [
    {
        "aggregation",
        "errors",
        "files",
        "ranges",
        "records",
        "embedded",
        "quoting",
        "thinking",
        "showing",
        "terminal",
        "progress",
    },
    {
        "verdict",
        "critique",
        "stopping",
        "runs",
        "content",
        "reading",
        "tables",
        "splitting",
        "prompts",
        "models",
        "presets",
        "grading",
        "ledger",
        "plugins",
        "subcommands",
        "folders",
    },
    {"engines", "jobs", "cluster"},
    {"rewarders"},
    {"api", "benchmarks", "data", "search", "training"},
    {"report", "evolve", "reproduce", "serve", "integrations"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}

#: Within a layer, what may import what: `name: {names it may import}`.
WITHIN = {
    "aggregation": {"errors"},
    "errors": {"showing"},
    "records": {"aggregation", "errors"},
    "files": {"errors"},
    "terminal": {"showing"},
    "ranges": {"errors"},
    "embedded": {"records"},
    "models": {"runs", "prompts", "verdict"},
    "presets": {"models", "stopping"},
    "subcommands": {"runs"},
    "reading": {"content", "splitting"},
    "tables": {"reading"},
    "progress": {"records"},
    "prompts": {"verdict", "critique", "reading", "folders"},
    "critique": {"stopping"},
    "jobs": {"cluster"},
    "api": {"benchmarks", "search"},
    "data": {"benchmarks", "search"},
    "search": {"benchmarks"},
    "training": {"benchmarks", "data"},
    "report": {"reproduce"},
    "serve": {"integrations"},
    "__main__": {"cli"},
}

#: The package itself re-exports lazily and is imported by nobody below but for its version.
FACE = {"__init__"}

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def unit(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Units of rprm that a file imports anywhere in it, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "rprm":
                names = [f"rprm.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("rprm.") and name.count(".") >= 1}
    return found - {"__version__"}


def test_every_module_has_its_layer() -> None:
    units = {unit(path) for path in SOURCE.rglob("*.py")} - FACE
    assert units <= set(LEVEL), f"not in a layer: {units - set(LEVEL)}"
    assert set(LEVEL) <= units, f"in a layer, but gone: {set(LEVEL) - units}"


def test_imports_point_up() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = unit(path)
        if name in FACE:
            continue
        for other in sorted(imports(path)):
            upward = LEVEL[other] < LEVEL[name]
            if not (upward or other == name or other in WITHIN.get(name, ())):
                wrong.append(f"{path.relative_to(SOURCE)} imports {other}")
    assert not wrong, wrong


def test_no_dumping_grounds() -> None:
    assert not [path for path in SOURCE.rglob("*") if path.name.removesuffix(".py") in FORBIDDEN_NAMES]
