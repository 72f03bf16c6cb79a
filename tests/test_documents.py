"""README, docs and configurations say what is true."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import metaecg

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_ci_runs_exactly_the_readmes_test_command():
    commands = re.findall(r"```sh\n(.*?)\n```", README, flags=re.S)
    (command,) = [c for c in commands if "pytest" in c]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_two_set_up_commands_are_one_line_each():
    commands = re.findall(r"```sh\n(.*?)\n```", README, flags=re.S)[:2]
    assert all("\n" not in command for command in commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def load_script(name):
    """Import a script of experiments/scripts."""
    path = ROOT / "experiments" / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("README.md", ["va_deploy"]),
        ("docs/results/va.md", ["va_deploy", "va_as_published"]),
        ("docs/results/va_fewshot.md", ["va_fewshot"]),
    ],
)
def test_every_row_of_a_table_of_methods_is_that_of_the_committed_results(page, names):
    table_of = load_script("results_table").methods_table
    header = table_of({"methods": {}})
    _, *tables = (ROOT / page).read_text().split(header)
    assert len(tables) == len(names)
    for table, name in zip(tables, names, strict=True):
        results = json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())
        shown = table.split("\n\n")[0].strip().splitlines()
        assert shown
        assert set(shown) <= set(table_of(results).splitlines())


def test_every_public_name_can_be_imported_and_is_listed():
    for name in metaecg.__all__:
        assert getattr(metaecg, name) is not None
    assert set(metaecg.__all__) <= set(dir(metaecg))


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Personaliser'"):
        metaecg.Personaliser  # noqa: B018


def test_no_page_and_no_code_names_this_or_that_machine():
    files = [*PAGES, *(ROOT / "metaecg").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    files = [f for f in files if f != Path(__file__)]
    for file in files:
        assert not re.search(r"/work/(main|shared)|/opt/", file.read_text()), file
