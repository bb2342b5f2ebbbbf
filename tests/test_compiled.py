"""What numba keeps of a compiled loop is found again, and never another's, whoever else is writing."""

import os
import subprocess
import sys
from pathlib import Path

from numba.core.caching import IndexDataCacheFile

from jepaplan.compiled import NamedByContent


def torn(kind: type[IndexDataCacheFile], folder: Path) -> list[object]:
    """What is read for either's arguments where a second process writes in the middle of the first."""
    first, second = (kind(str(folder), "loop", ("stamp", 1)) for _ in range(2))
    write = first._save_data
    second._load_index = dict  # it had looked before the first began

    def interrupted(name: str, data: object) -> None:
        second.save("whole numbers", "a loop for whole numbers")
        write(name, data)

    first._save_data = interrupted
    first.save("floats", "a loop for floats")
    reader = kind(str(folder), "loop", ("stamp", 1))
    return [reader.load(each) for each in ("floats", "whole numbers")]


def test_a_loop_is_never_read_for_arguments_that_it_does_not_fit(tmp_path):
    (tmp_path / "numba").mkdir()
    known = torn(IndexDataCacheFile, tmp_path / "numba")
    assert known == [None, "a loop for floats"]  # the day this fails, numba's own way will do
    assert torn(NamedByContent, tmp_path) == ["a loop for floats", "a loop for whole numbers"]


def test_changed_code_is_compiled_anew(tmp_path):
    old, new = (NamedByContent(str(tmp_path), "loop", stamp) for stamp in (1, 2))
    old.save("floats", "old")
    assert new.load("floats") is None
    new.save("floats", "new")
    assert new.load("floats") == "new"
    assert old.load("floats") is None


def test_the_next_process_finds_what_the_first_compiled(tmp_path):
    script = (
        "import torch\n"
        "from jepaplan.planners.stepwise import distinct\n"
        "from jepaplan.planners.tree_loops import draw_distinct\n"
        "assert sorted(distinct(torch.rand(1, 3), 3)[0].tolist()) == [0, 1, 2]\n"
        "print(len(draw_distinct.stats.cache_hits), len(draw_distinct.stats.cache_misses))"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert said == [["0", "1"], ["1", "0"]]
