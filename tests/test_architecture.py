"""A layer imports earlier layers only: in its text, and in what really gets loaded.

The order is that of docs/architecture.md:
foundation, data, tasks, models, meta, adapt, pretrain, evaluate, experiments; `serve` uses data,
models and adapt alone, `client` nothing but the foundation: it speaks to a server elsewhere.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "metaecg"
ORDER = ("data", "tasks", "models", "meta", "adapt", "pretrain", "evaluate", "experiments")
ALLOWED = {"foundation": {"foundation"}} | {
    layer: {"foundation", *ORDER[: place + 1]} for place, layer in enumerate(ORDER)
}
ALLOWED["serve"] = {"foundation", "data", "models", "adapt", "serve"}
ALLOWED["client"] = {"foundation", "client"}
"""Layer to the layers that it may import, its own included."""

LATE_PACKAGES = ("optuna", "mlflow", "learn2learn")
"""Heavy packages of the experiments; no earlier layer loads them when it is imported."""
NEVER_NAMED = {"optuna": {"experiments"}, "mlflow": {"experiments", "models"}}
NEVER_NAMED["learn2learn"] = {"experiments", "meta"}  # one engine of meta wraps it
"""Package to the only layers that may name it, even inside a function."""


def find_modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = find_modules()
FOUNDATION = {name.split(".")[1] for name in MODULES if name.count(".") == 1} - set(ALLOWED)


def layer_of(name: str) -> str:
    """Return the layer of a dotted name below metaecg; a name that is in none stays itself."""
    parts = name.split(".")
    if len(parts) == 1 or parts[1] in FOUNDATION or parts[1].startswith("__"):
        return "foundation"
    return parts[1]


def imports_of(source: str, module: str, *, is_package: bool = False) -> list[tuple[int, str]]:
    """Return (line, dotted name) of everything that `source` imports, wherever it stands."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
    return found


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return what `module` imports against the rule, one sentence each."""
    layer, found = layer_of(module), []
    for line, name in imports_of(source, module, is_package=is_package):
        top = name.split(".")[0]
        if top == "metaecg" and layer_of(name) not in ALLOWED[layer]:
            found.append(f"{module}:{line} imports {name}, {layer} may not")
        if layer not in NEVER_NAMED.get(top, {layer}):
            found.append(f"{module}:{line} names {top}, {layer} may not")
    return found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("metaecg.data.x", "from metaecg.tasks.sampler import Task"),
        ("metaecg.data.x", "import metaecg.meta.engine as engine"),
        ("metaecg.data.x", "from metaecg import evaluate"),
        ("metaecg.data.x", "from ..models import registry"),
        ("metaecg.data.x", "def f():\n    from metaecg.models.registry import NETWORKS"),
        ("metaecg.data.x", "if TYPE_CHECKING:\n    from metaecg.models.registry import NETWORKS"),
        ("metaecg.data.x", "importlib.import_module('metaecg.experiments.cli')"),
        ("metaecg.checks", "from metaecg.data.windows import WindowSet"),
        ("metaecg.evaluate.x", "from metaecg.experiments.config import VAConfig"),
        ("metaecg.experiments.x", "from metaecg.serve.app import app"),
        ("metaecg.serve.x", "from metaecg.tasks.sampler import Task"),
        ("metaecg.serve.x", "from metaecg.evaluate.metrics import f1"),
        ("metaecg.data.x", "from metaecg import Personalizer"),
        ("metaecg.evaluate.x", "def f():\n    import mlflow"),
        ("metaecg.models.x", "from optuna.trial import Trial"),
        ("metaecg.serve.x", "import learn2learn"),
        ("metaecg.serve.x", "from metaecg.client import Client"),
        ("metaecg.client.x", "from metaecg.serve.store import Store"),
        ("metaecg.client", "from metaecg.data.records import Record"),
        ("metaecg.data.x", "from metaecg.client import Client"),
    ],
)
def test_a_planted_violation_is_found(module, line):
    assert len(violations(f"import numpy\n{line}\n", module)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("metaecg.data.x", "from metaecg.data import cache\nfrom metaecg.errors import DataError"),
        ("metaecg.data.x", "from . import cache\nfrom .. import checks"),
        ("metaecg.models.x", "from metaecg import __version__\nimport metaecg"),
        ("metaecg.experiments.x", "import mlflow\nfrom metaecg.evaluate.metrics import f1"),
        ("metaecg.serve.x", "from metaecg.adapt.personalize import Personalizer"),
        (
            "metaecg.client.x",
            "from metaecg.client.http import x\nfrom metaecg.errors import DataError",
        ),
        ("metaecg.meta.x", "def f():\n    import learn2learn"),
        ("metaecg.models.x", "def f():\n    import mlflow"),
    ],
)
def test_an_allowed_import_is_left_alone(module, line):
    assert violations(line, module) == []


def test_a_relative_import_of_a_package_starts_at_the_package_itself():
    assert imports_of("from .x import y", "metaecg.data", is_package=True) == [
        (1, "metaecg.data.x.y")
    ]
    assert imports_of("from .x import y", "metaecg.data.z") == [(1, "metaecg.data.x.y")]


def test_every_folder_is_a_layer():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(ALLOWED)
    named = {"data", "tasks", "models", "meta", "adapt", "evaluate", "experiments"}
    assert {*named, "serve", "client"} <= folders


def test_a_module_imports_its_own_and_earlier_layers_only():
    found = []
    for module, path in MODULES.items():
        if (
            module == "metaecg"
        ):  # the public names lead everywhere; that it loads nothing is tested below
            continue
        source = path.read_text(encoding="utf-8")
        found += violations(source, module, is_package=path.name == "__init__.py")
    assert found == []


IMPORTER = """
import importlib, json, sys
for step in json.loads(sys.argv[1]):
    for name in step:
        importlib.import_module(name)
    print(json.dumps(sorted(sys.modules)))
"""


def loaded_after(*steps: list[str]) -> list[set[str]]:
    """Import the modules of each step in turn in a new process; return what is loaded after it."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTER, json.dumps(steps)],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [set(json.loads(line)) for line in done.stdout.splitlines()]


def layers_among(modules: set[str]) -> set[str]:
    return {layer_of(name) for name in modules if name.split(".")[0] == "metaecg"}


def test_importing_the_package_loads_no_layer_and_no_torch():
    (loaded,) = loaded_after(["metaecg"])
    assert layers_among(loaded) == {"foundation"}
    assert loaded.isdisjoint({"torch", "numpy", "scipy", "sklearn", *LATE_PACKAGES})


def test_importing_a_layer_loads_no_later_layer_and_no_package_of_the_experiments():
    names = ["foundation", *ORDER[:-1]]
    steps = [[m for m in MODULES if layer_of(m) == layer] for layer in names]
    for layer, loaded in zip(names, loaded_after(*steps), strict=True):
        assert layers_among(loaded) <= ALLOWED[layer], layer
        assert loaded.isdisjoint(LATE_PACKAGES), layer
        if layer in ("foundation", "data", "tasks"):
            assert "torch" not in loaded, layer


def test_what_a_server_needs_loads_data_models_and_adapt_alone():
    (loaded,) = loaded_after([name for name in MODULES if layer_of(name) == "serve"])
    assert layers_among(loaded) <= ALLOWED["serve"]
    assert loaded.isdisjoint(LATE_PACKAGES)


def test_a_client_loads_no_other_layer_and_nothing_that_only_a_server_needs():
    (loaded,) = loaded_after([name for name in MODULES if layer_of(name) == "client"])
    assert layers_among(loaded) == {"foundation", "client"}
    servers = {"torch", "scipy", "sklearn", "wfdb", "fastapi", "sqlalchemy", "alembic"}
    assert loaded.isdisjoint({*servers, *LATE_PACKAGES})


def test_the_store_loads_neither_torch_nor_the_web():
    (loaded,) = loaded_after(["metaecg.serve.store"])
    assert loaded.isdisjoint({"torch", "scipy", "sklearn", "fastapi", "psycopg"})
