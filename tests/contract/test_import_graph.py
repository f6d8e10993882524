"""Imports run one way, as design.md draws it: no circle, no room that knows too much, nothing heavy early."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGES = ("slime_bench", "data_prep")
GROUND = {"errors", "seeding", "paths", "storage", "lock", "console", "imagenet", "places", "colours"}
TRIALS = {"config", "metrics", "attention", "refine", "data", "backbones", "methods", "results", "tracking"}
ROOMS: dict[str, set[str]] = {
    # room: the other rooms it may import, from the ground up
    "errors": set(),
    "seeding": set(),
    "imagenet": set(),
    "places": set(),
    "colours": set(),
    "lock": {"errors"},
    "console": {"errors"},
    "paths": {"errors"},
    "storage": {"errors", "lock"},
    "config": GROUND,
    "metrics": GROUND,
    "attention": GROUND,  # knows no model
    "refine": GROUND,
    "data": {*GROUND, "config"},
    "backbones": {*GROUND, "config", "attention"},  # know no method
    "methods": {*GROUND, "config", "metrics", "attention", "refine", "backbones", "results"},  # know no data set
    "results": {*GROUND, "config", "metrics"},
    "tracking": {*GROUND, "config", "metrics", "results"},
    "trial": {*GROUND, *TRIALS},
    "sweep": {*GROUND, "config", "results", "trial"},
    "report": {*GROUND, "config", "metrics", "results"},  # reads files only
    "segment": {*GROUND, *TRIALS, "trial"},
    "figures": {*GROUND, *TRIALS, "trial", "sweep", "report", "segment"},  # pictures of trials, and of one's own images
    "app": {*GROUND, *TRIALS, "trial", "segment"},  # a page on it
    "bench": {*GROUND, *TRIALS, "trial"},
    "cli": {*GROUND, "config", "sweep"},  # finds the other commands by their name
    # Preparing data and training the bundled backbones: tools beside the bench, which may measure with it.
    "data_prep": {*GROUND, *TRIALS, "cli"},
}
"""Rooms of design.md. A new room is added here, with the rooms it may know, in the change that adds it."""

HEAVY = {"torch", "lightning", "diffusers", "transformers", "torchmetrics", "wandb", "matplotlib", "pandas", "scipy"}
LIGHT: dict[str, set[str]] = {
    # what is imported with these modules, at once and through others, must not include
    "slime_bench": HEAVY | {"hydra", "omegaconf", "numpy"},
    "slime_bench.cli": HEAVY | {"hydra"},
    "slime_bench.config.schema": HEAVY | {"hydra"},
    "slime_bench.sweep": HEAVY,
    "slime_bench.backbones.diffusion": HEAVY,
    "slime_bench.backbones.ddpm": HEAVY,
    "slime_bench.backbones.vision_language": HEAVY,
    "slime_bench.backbones.in_context": HEAVY,
    "slime_bench.data.datasets": HEAVY,
    "slime_bench.methods.slime.config": HEAVY,
    "slime_bench.methods.infoscore.config": HEAVY,
    "slime_bench.refine.config": HEAVY,
    "slime_bench.methods.segddpm.config": HEAVY,
    "slime_bench.methods.peekaboo.config": HEAVY,
    "slime_bench.methods.supervised.config": HEAVY,
    "slime_bench.backbones.upernet": HEAVY,
    "slime_bench.methods.seggpt.config": HEAVY,
    "slime_bench.methods.regan.config": HEAVY,
    "slime_bench.backbones.gan": HEAVY,
    "slime_bench.methods.diffseg.config": HEAVY,
    "slime_bench.report": HEAVY - {"matplotlib", "pandas"},
}


@dataclass(frozen=True)
class Import:
    """`source` imports `target`; `late` is inside a function."""

    source: str
    target: str
    late: bool
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def modules_of(root: Path, packages: Sequence[str] = PACKAGES) -> dict[str, Path]:
    """Dotted names and files of all modules of the packages under `root`."""
    found = {}
    for file in sorted(each for package in packages for each in (root / package).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(modules: Mapping[str, Path]) -> list[Import]:
    """All imports, of own modules by their full name, of others by what is written; `TYPE_CHECKING` blocks left out."""
    found = []
    for name, file in modules.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for node, late in _statements(ast.parse(file.read_text(encoding="utf-8")), False):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                # `from a import b` imports the module a.b where there is one, and the module a otherwise.
                own = [f"{base}.{alias.name}" for alias in node.names]
                targets = [each if each in modules else base for each in own]
            found += [Import(name, target, late, node.lineno) for target in dict.fromkeys(targets)]
    return found


def _statements(node: ast.AST, late: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, late
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _statements(other, late)
        else:
            yield from _statements(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def room_of(module: str) -> str:
    """The room of a module: the second part of its name, or `data_prep`; empty for the package `slime_bench` itself."""
    first, _, rest = module.partition(".")
    room = rest.partition(".")[0] if first == "slime_bench" else first
    return "cli" if room == "__main__" else room  # `python -m slime_bench`


def forbidden(modules: Mapping[str, Path], imports: Sequence[Import]) -> list[str]:
    """Imports between rooms that `ROOMS` does not allow, and rooms that it does not know."""
    rooms = {name: room_of(name) for name in modules}
    unknown = sorted({room for room in rooms.values() if room and room not in ROOMS})
    found = [f"the room `{room}` is not in the table ROOMS of this test" for room in unknown]
    for each in imports:
        if each.target not in modules:
            continue
        source, target = rooms[each.source], rooms[each.target]
        if target and target != source and target not in ROOMS.get(source, set()):
            found.append(f"{each}: `{source or 'slime_bench'}` must not know `{target}`")
    return found


def circles(modules: Mapping[str, Path], imports: Sequence[Import]) -> list[list[str]]:
    """Circles of imports between modules, late ones included: each as the modules along it."""
    graph: dict[str, list[str]] = {name: [] for name in modules}
    for each in imports:
        if each.target in modules and each.target != each.source:
            graph[each.source].append(each.target)
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name not in done:
            for target in graph[name]:
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def loaded_with(start: str, modules: Mapping[str, Path], imports: Sequence[Import]) -> dict[str, list[str]]:
    """What `import start` (and every module below it) loads at once: for each name the chain of modules to it."""
    early: dict[str, list[str]] = {name: [] for name in modules}
    for each in imports:
        if not each.late:
            early[each.source].append(each.target)
    reached: dict[str, list[str]] = {}
    waiting = [
        (name, [name]) for name in modules if name == start or (start != "slime_bench" and name.startswith(f"{start}."))
    ]
    while waiting:
        name, chain = waiting.pop()
        if name in reached:
            continue
        reached[name] = chain
        if name in modules:
            parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
            waiting += [(target, [*chain, target]) for target in (*early[name], *parents)]
    return reached


def too_heavy(modules: Mapping[str, Path], imports: Sequence[Import]) -> list[str]:
    """Libraries that `LIGHT` forbids, with the chain of imports that loads them."""
    found = []
    for start, heavy in LIGHT.items():
        for name, chain in loaded_with(start, modules, imports).items():
            if name.split(".")[0] in heavy:
                found.append(" -> ".join(chain))
    return found


@pytest.fixture(scope="module")
def modules(repository: Path) -> dict[str, Path]:
    return modules_of(repository)


@pytest.fixture(scope="module")
def imports(modules: dict[str, Path]) -> list[Import]:
    return imports_of(modules)


class TestOwnTree:
    def test_rooms_know_only_what_they_may(self, modules: dict[str, Path], imports: list[Import]) -> None:
        assert forbidden(modules, imports) == []

    def test_no_circle(self, modules: dict[str, Path], imports: list[Import]) -> None:
        assert circles(modules, imports) == []

    def test_nothing_heavy_is_imported_early(self, modules: dict[str, Path], imports: list[Import]) -> None:
        assert too_heavy(modules, imports) == []

    def test_own_imports_lead_somewhere(self, modules: dict[str, Path], imports: list[Import]) -> None:
        lost = [str(each) for each in imports if each.target.split(".")[0] in PACKAGES and each.target not in modules]
        assert lost == []

    @pytest.mark.parametrize(
        "name", ["slime_bench", "slime_bench.cli", "slime_bench.report.command", "slime_bench.sweep.launcher"]
    )
    def test_in_a_real_process(self, repository: Path, name: str) -> None:
        """The static check cannot see what a library imports in turn."""
        code = f"import sys, {name}; print(*sorted({{each.split('.')[0] for each in sys.modules}}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
        assert {"torch", "diffusers", "transformers", "lightning", "wandb", "matplotlib"} & set(
            done.stdout.split()
        ) == set()

    def test_the_table_itself_runs_one_way(self) -> None:
        """Rooms that may know each other would make the table worthless."""
        edges = {(a, b) for a, others in ROOMS.items() for b in others}
        names = {name: Path() for name in ROOMS}
        assert circles(names, [Import(a, b, False, 0) for a, b in edges]) == []


@pytest.mark.parametrize(
    ("file", "text", "wrong", "circle", "heavy"),
    [
        ("attention/capture.py", "from ..methods import slime\n", "`attention` must not know `methods`", "", ""),
        ("attention/capture.py", "def f():\n    import slime_bench.methods.slime\n", "`attention` must not", "", ""),
        ("attention/capture.py", "if TYPE_CHECKING:\n    import slime_bench.methods.slime\n", "", "", ""),
        ("helpers/__init__.py", "", "helpers", "", ""),
        ("attention/maps.py", "def f():\n    from .other import g\n", "", "slime_bench.attention.other", ""),
        ("results.py", "import torch\n", "", "", "slime_bench.report.tables -> slime_bench.results -> torch"),
        ("results.py", "def f():\n    import torch\n", "", "", ""),
    ],
)
def test_the_checks_can_fail(tmp_path: Path, file: str, text: str, wrong: str, circle: str, heavy: str) -> None:
    """A small tree that breaks each rule, or just keeps it."""
    tree = {
        "attention/maps.py": "import torch\nfrom slime_bench.errors import E\n",
        "attention/other.py": "from .maps import average\n",
        "methods/slime.py": "from slime_bench.attention import maps\n",
        "results.py": "",
        "report/tables.py": "from slime_bench.results import read\n",
    }
    empty = {f"{room}/__init__.py": "" for room in (".", "attention", "methods", "report")}
    for name, content in {**empty, "errors.py": "", **tree, file: text}.items():
        (tmp_path / "slime_bench" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "slime_bench" / name).write_text(content)
    modules = modules_of(tmp_path)
    imports = imports_of(modules)
    for found, expected in zip(
        (forbidden(modules, imports), circles(modules, imports), too_heavy(modules, imports)),
        (wrong, circle, heavy),
        strict=True,
    ):
        assert len(found) == bool(expected) and all(expected in each for each in found), found


def test_the_figure_of_the_rooms_is_the_codes(repository: Path) -> None:
    """docs/figures/rooms.svg is drawn from the imports; `python docs/architecture.py` draws it anew."""
    script = runpy.run_path(str(repository / "docs" / "architecture.py"))
    assert script["svg"](script["edges"]()) == (repository / "docs" / "figures" / "rooms.svg").read_text()
