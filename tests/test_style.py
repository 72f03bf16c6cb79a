"""What can be counted of the house style: sizes, docstrings, prints, the tree of exceptions."""

import ast
import inspect
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from metaecg import errors

PACKAGE = Path(__file__).parent.parent / "metaecg"
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
MAX_LINES = 400
MAX_BODY = 60


def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def long_bodies(tree: ast.Module) -> list[str]:
    """Return the functions whose body, docstring left out, has more than `MAX_BODY` lines."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body and node.end_lineno - body[0].lineno + 1 > MAX_BODY:
                found.append(node.name)
    return found


def without_docstring(tree: ast.Module) -> list[str]:
    """Return the public functions and classes of a module that say nothing about themselves."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]
    return [node.name for node in public if not ast.get_docstring(node)]


def prints(tree: ast.Module) -> list[int]:
    """Return the lines that call print."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]


def offenders(found_in: Callable[[ast.Module], list]) -> dict[str, list]:
    """Return file -> what `found_in` found there, for the files where it found something."""
    found = {name: found_in(parsed(name)) for name in FILES}
    return {name: offences for name, offences in found.items() if offences}


def test_a_file_has_at_most_four_hundred_lines():
    lines = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()
    }
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}


def test_no_two_files_of_tests_have_one_name():
    # pytest imports them by their bare names: the second of two would not be collected.
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, n in names.items() if n > 1] == []


def test_the_body_of_a_function_has_at_most_sixty_lines():
    assert offenders(long_bodies) == {}


def test_public_functions_and_classes_have_docstrings():
    assert offenders(without_docstring) == {}


def test_every_file_says_what_it_is():
    silent = [name for name in FILES if parsed(name).body and not ast.get_docstring(parsed(name))]
    assert silent == []  # an empty __init__ has nothing to say


def test_the_library_does_not_print():
    found = {
        name: lines
        for name, lines in offenders(prints).items()
        if not name.startswith("experiments/") and not name.endswith("__main__.py")
    }
    assert found == {}


def test_what_these_tests_look_for_is_found():
    long = "def f():\n    '''Doc.'''\n" + "    x = 1\n" * MAX_BODY
    assert long_bodies(ast.parse(long)) == []
    assert long_bodies(ast.parse(long + "    x = 1\n")) == ["f"]
    assert without_docstring(ast.parse("def f(): pass\nclass C: pass\ndef _g(): pass")) == [
        "f",
        "C",
    ]
    assert prints(ast.parse("x = 1\nprint(x)")) == [2]


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Return class -> (parent, builtin in brackets) as drawn at the top of errors.py."""
    found, above = {}, {}
    for line in errors.__doc__.splitlines():
        match = re.fullmatch(r"( +)([A-Z]\w+)(?: \((\w+)\))?(?: {2,}.*)?", line)
        if match:
            depth = len(match[1]) // 4
            above[depth] = match[2]
            found[match[2]] = (above[depth - 1] if depth > 1 else None, match[3])
    return found


def classes_of_errors() -> dict[str, type]:
    mine = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in mine if kind.__module__ == errors.__name__}


def test_the_tree_of_exceptions_is_drawn_whole():
    assert set(drawn_tree()) == set(classes_of_errors())


@pytest.mark.parametrize("name", drawn_tree())
def test_an_exception_has_the_parents_that_are_drawn(name):
    parent, builtin = drawn_tree()[name]
    bases = [base.__name__ for base in classes_of_errors()[name].__bases__]
    expected = [base for base in (parent, builtin) if base]
    assert bases == (expected or ["Exception"])
