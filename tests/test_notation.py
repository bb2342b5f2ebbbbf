"""Every name in docs/notation.md exists."""

import re
from importlib import import_module
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "notation.md").read_text()
NAMES = sorted(set(re.findall(r"`(jepaplan(?:\.\w+)+)`", TEXT)))


def resolve(name: str) -> object:
    """The module, class, function, constant or dataclass field of that name."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise AssertionError(name)


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name):
    resolve(name)


def test_there_are_names():
    assert len(NAMES) > 20


def test_a_wrong_name_would_be_noticed():
    with pytest.raises(AttributeError):
        resolve("jepaplan.types.Plam")


def test_axes_are_those_of_the_legend():
    legend = (Path(__file__).parents[1] / "src" / "jepaplan" / "types.py").read_text()
    for axis in "BSHTADN":
        assert re.search(rf"^\| {axis} \|", TEXT, re.MULTILINE)
        assert re.search(rf"^    {axis}  ", legend, re.MULTILINE)
