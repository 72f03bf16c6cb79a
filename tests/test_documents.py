"""README, docs and configurations say what is true."""

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


def test_every_method_of_the_readmes_table_has_the_committed_figures():
    results = json.loads((ROOT / "experiments" / "results" / "va_deploy.json").read_text())
    rows = re.findall(r"^\| `([^`]+)` \|(.+)\|$", README, flags=re.M)
    assert rows
    for name, cells in rows:
        shown = [cell.strip() for cell in cells.split("|")]
        figures = results["methods"][name]
        auc, f1, pooled = figures["subject_auc"], figures["subject_f1"], figures["pooled"]
        low, high = auc["ci95"]
        expected = [
            f"{auc['mean']:.3f} [{low:.3f}, {high:.3f}]",
            f"{auc['std']:.3f}",
            f"{auc['worst']:.3f}",
            f"{f1['mean']:.3f}",
            f"{pooled['auc']:.3f}",
            f"{pooled['f1']:.3f}",
        ]
        assert shown == expected, name


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
