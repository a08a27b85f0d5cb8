"""Arrows go down: which package may import which, and no circles between modules, read from the source files.

```
            alula                 what people call
          /   |    \\
  compiler    |     sim           compiler and sim know nothing of each other: a program's words are all they share
     |        |      |
  ref_model --+      hw
          \\        /
           hw.spec                the standard library only (tests/hw/spec/test_purity.py)
```
"""

import ast
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "hw.spec": set(),
    "hw": {"hw.spec"},
    "ref_model": {"hw.spec"},
    "compiler": {"hw.spec", "ref_model"},
    "sim": {"hw.spec", "hw"},
    "alula": {"hw.spec", "hw", "ref_model", "compiler", "sim"},
}
"""Package -> the packages that it may import from."""


def package(module: str) -> str:
    """The entry of `BELOW` that a module belongs to."""
    return "hw.spec" if f"{module}.".startswith("hw.spec.") else module.partition(".")[0]


def sources(root: Path) -> dict[str, str]:
    """Module name -> source text, of every package in `BELOW`."""
    found = {}
    for path in sorted(path for top in BELOW for path in root.glob(f"{top.partition('.')[0]}/**/*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports(modules: dict[str, str]) -> nx.DiGraph:
    """An arrow from every module to those it imports, anywhere in its text: an import in a function is one, too."""
    graph = nx.DiGraph()
    graph.add_nodes_from(modules)
    inner = {name.rpartition(".")[0] for name in modules}
    for name, text in modules.items():
        home = name if name in inner else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(text)):
            for target in _targets(node, home):
                known = target if target in modules else target.rpartition(".")[0]
                if known in modules and known != name:
                    graph.add_edge(name, known)
    return graph


def _targets(node: ast.AST, home: str) -> list[str]:
    """Full names that a statement imports; `home` is the package that a relative import starts from."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    up = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*up, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def upward(graph: nx.DiGraph) -> list[str]:
    """Arrows that `BELOW` does not allow."""
    return [
        f"{tail} -> {head}"
        for tail, head in graph.edges
        if package(head) != package(tail) and package(head) not in BELOW[package(tail)]
    ]


def circles(graph: nx.DiGraph) -> list[list[str]]:
    return [sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1]


@pytest.fixture(scope="module")
def modules():
    return sources(ROOT)


def test_no_arrow_goes_up(modules):
    assert upward(imports(modules)) == []


def test_there_are_no_circles(modules):
    assert circles(imports(modules)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("compiler.pack", "from sim.memory_image import MemoryImage"),
        ("sim.cycle", "def later():\n    import alula.session"),
        ("hw.spec.isa", "from hw import core"),
        ("ref_model.mask", "from compiler import ir"),
    ],
)
def test_an_upward_arrow_is_found(modules, module, line):
    planted = modules | {module: f"{modules[module]}\n{line}\n"}
    assert [arrow.partition(" ")[0] for arrow in upward(imports(planted))] == [module]


def test_a_circle_is_found(modules):
    planted = modules | {"compiler.ir": f"{modules['compiler.ir']}\nfrom . import pipeline\n"}
    (circle,) = circles(imports(planted))
    assert {"compiler.ir", "compiler.pipeline"} <= set(circle)
