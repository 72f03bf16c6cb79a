"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import metaecg

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(metaecg.__path__, "metaecg.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [
        t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples
    ]
    assert len(found) >= 5
