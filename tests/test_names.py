"""Every global name that the library's code looks up exists.

Shape strings such as "B *latent" look like names to linters, so neither ruff nor pyright may be asked.
"""

import builtins
import dis
import importlib
import pkgutil
from types import CodeType

import pytest

import jepaplan

MODULES = [found.name for found in pkgutil.walk_packages(jepaplan.__path__, "jepaplan.")]


def codes(code: CodeType) -> list[CodeType]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [code, *(deeper for one in inner for deeper in codes(one))]


def undefined(source: str, file: str, known: set[str]) -> set[str]:
    looked_up = {
        instruction.argval
        for code in codes(compile(source, file, "exec"))
        for instruction in dis.get_instructions(code)
        if instruction.opname == "LOAD_GLOBAL"
    }
    return looked_up - known - set(vars(builtins))


@pytest.mark.parametrize("name", MODULES)
def test_no_function_looks_for_what_is_not_there(name: str):
    module = importlib.import_module(name)
    assert module.__file__ is not None
    with open(module.__file__) as file:
        source = file.read()
    assert undefined(source, module.__file__, set(vars(module))) == set()


def test_a_name_that_is_not_there_is_found():
    source = 'def shape(x: "B *latent") -> "B":\n    return len(x) + missing\n'
    assert undefined(source, "some.py", {"shape"}) == {"missing"}
