"""The layout holds: imports point downwards and in no circle, functions and modules stay small."""

import ast
import json
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "medkit"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
NAMES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in TREES}
MODULES = {name.removesuffix(".__init__"): TREES[path] for name, path in NAMES.items()}
# Each layer and those below it that it may import; a module directly in medkit/ is "top".
BELOW = {"top": "", "data": "top", "runs": "top data", "train": "top data runs"}
BELOW["evaluate"] = BELOW["train"] + " train"
BELOW["preflight"] = BELOW["evaluate"] + " evaluate"
BELOW["report"] = "top data runs evaluate"  # a report is read where nothing can be trained
BELOW["deliver"] = BELOW["evaluate"] + " evaluate report"
BELOW["pipeline"] = BELOW["preflight"] + " preflight report"
ABOVE_ALL = ("medkit.__main__", "medkit.distributed")


def layer(module: str) -> str:
    name = module.split(".")[1:2]
    return name[0] if name and (PACKAGE / name[0]).is_dir() else "top"


def imports(module: str) -> set[str]:
    """The modules of medkit that it imports, also within functions; not those for type hints alone."""
    found = set()
    blocks = [
        n for n in MODULES[module].body if getattr(getattr(n, "test", None), "id", "") != "TYPE_CHECKING"
    ]
    for node in (node for block in blocks for node in ast.walk(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "medkit":
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in MODULES else node.module for name in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES.keys()
    return found


def test_imports_point_downwards():
    arrows = {(a, b) for a in MODULES.keys() - set(ABOVE_ALL) for b in imports(a)}
    assert len(arrows) > 100
    assert {layer(module) for module in MODULES} == BELOW.keys()
    upward = {(a, b) for a, b in arrows if layer(b) not in (layer(a), *BELOW[layer(a)].split())}
    assert not upward | {(a, b) for a, b in arrows if b in ABOVE_ALL}


def test_no_circle_of_imports():
    tuple(TopologicalSorter({module: imports(module) for module in MODULES}).static_order())  # CycleError


def test_a_report_imports_no_torch():
    for module in MODULES:
        if layer(module) == "report":
            named = {n.module for n in ast.walk(MODULES[module]) if isinstance(n, ast.ImportFrom)}
            named |= {a.name for n in ast.walk(MODULES[module]) if isinstance(n, ast.Import) for a in n.names}
            assert not {name for name in named if name and name.partition(".")[0] == "torch"}, module


def test_notebooks_import_from_ten_names():
    names = set("recipes prompts pubmedqa dmt data runs train evaluate report preflight".split())
    for path in (PACKAGE.parent / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("medkit"):
                assert node.module == "medkit" and {alias.name for alias in node.names} <= names, path.name


def test_functions_and_modules_are_small():
    functions = {
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > 60} == {}
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in TREES}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert not {"utils", "helpers", "common"} & {path.stem for path in TREES}
