"""The house's floors: a room imports only from rooms below it, and what should be light is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "g4lab"
# Ground first; rooms of one row may not import each other unless the row is a single room.
FLOORS = [
    {"__init__", "errors", "env", "figures", "children"},
    {"gemma4", "published"},
    {"kernels"},
    {"tuning", "trace", "quality", "kvpool"},
    {"bench", "patches"},
    {"runners"},
    {"records", "batch", "profiles", "report", "doctor"},
    {"campaign", "bundle", "claims"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
SHARED_ROWS = {0, 6}  # plain modules and the batch room, which belong together
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] if node.module != "g4lab" else [f"g4lab.{a.name}" for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path}: relative import; the house imports by full name")
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("g4lab.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = room(path)
    if here == "runners" and "standin" in path.parts:
        assert not imported_rooms(path), "the stand-in runs in SGLang's processes and stands alone"
        return
    for other in imported_rooms(path) - {here, "__version__"}:
        below = LEVEL[other] < LEVEL[here] or (LEVEL[other] == LEVEL[here] and LEVEL[here] in SHARED_ROWS)
        assert below, f"{here} imports {other}, which is not below it"


LIGHT = ["g4lab", "g4lab.gemma4", "g4lab.patches", "g4lab.patches.sglang_plugin", "g4lab.records", "g4lab.cli"]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_engine(module):
    code = f"import sys, {module}; print({{'torch', 'triton', 'transformers', 'sglang'}} & set(sys.modules) or 'light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"
