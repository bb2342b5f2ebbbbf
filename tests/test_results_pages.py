"""The README shows what the pages under docs/results say, and each page says what its JSON twin says."""

import importlib.util
import sys
from pathlib import Path

import pytest

from jepaplan.evaluation.results import markdown_table, read_rows
from jepaplan.recipes.catalogue import REPRODUCTIONS
from jepaplan.recipes.reproduction import Reproduction
from jepaplan.recipes.table2 import OURS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
# Success of VF_quasi; samples times horizon.
PAPER = {"WallSmall": (0.71, 2000 * 96), "WallBig": (0.96, 2000 * 64), "Maze": (0.63, 500 * 100)}
PAGES = sorted(page for page in RESULTS.glob("*.md") if page.name not in ("choices.md", "claims.md"))


def into_readme():
    spec = importlib.util.spec_from_file_location("into_readme", RESULTS / "into_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["into_readme"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_a_twin_with_the_same_rows(page: Path):
    rows, text = read_rows(page.with_suffix(".json")), page.read_text(encoding="utf-8")
    if "jepaplan reproduce" in text:  # methods by tasks, in tables of their own
        for row in rows:
            shown = f"{row.success.rate:.2f} [{row.success.low:.2f}, {row.success.high:.2f}]"
            lines = [line for line in text.splitlines() if line.startswith("| ") and shown in line]
            assert any(line.split(" | ")[0][2:] in row.method for line in lines), row
    else:
        assert markdown_table(rows).strip() in text


def test_the_page_of_searches_says_of_every_cell_how_many_calls_it_makes():
    costs = (RESULTS / "search.md").read_text(encoding="utf-8").split("## What planning costs")[1]
    for row in read_rows(RESULTS / "search.json"):
        (of_task,) = (table for table in costs.split("\n### ") if table.startswith(f"{row.task}\n"))
        method, size = row.method.rsplit(", ", 1)
        named, shown = (
            line.split(" | ")
            for line in of_task.splitlines()
            if line.startswith(("| method", f"| {method} |"))
        )
        assert shown[[name.strip(" |") for name in named].index(size)].startswith(
            f"{row.evaluations_per_step:,.0f}, "
        )


def test_pages_point_to_pages_that_exist():
    for make in REPRODUCTIONS.values():
        made = make("cpu")
        if isinstance(made, Reproduction):
            assert all((RESULTS / f"{name}.md").exists() for name in made.beside)


def test_the_readme_shows_the_pages_unchanged():
    module = into_readme()
    pages = [module.body(RESULTS / name) for name in module.PAGES]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module.filled(readme, pages) == readme


def test_the_readme_says_of_ours_what_the_page_says():
    rows = {row.task: row for row in read_rows(RESULTS / "table2.json") if row.method == OURS}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {"small steps": "WallSmall", "big steps": "WallBig", "maze, layouts never recorded": "Maze"}
    for name, task in names.items():
        (line,) = (line for line in readme.splitlines() if line.startswith(f"| {name} |"))
        row = rows[task]
        rate, paper = row.success, PAPER[task]
        solved = f"{rate.rate:.2f} [{rate.low:.2f}, {rate.high:.2f}] ({rate.successes} of {rate.trials})"
        assert line == f"| {name} | {solved} | {paper[0]} | {row.evaluations_per_step:,.0f} | {paper[1]:,} |"
