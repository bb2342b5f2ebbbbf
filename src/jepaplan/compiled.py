"""Loops that numba compiles the first time they are called, and keeps beside their file.

numba numbers what it keeps in the order of its making, and two processes that compile one function for
different types at once may both write number 1: whoever reads it later gets the other's loop, for types that
it does not fit, and plans with whatever lies in memory. Here a name says what is inside, so a race can only
make somebody compile again.
"""

import hashlib
import inspect
from collections.abc import Callable
from typing import Any, Literal

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile


def compiled(
    *, nogil: bool = False, fastmath: set[str] | bool = False, inline: Literal["never", "always"] = "never"
) -> Any:
    """A decorator: `numba.njit` with numpy's rules for division, and what it compiles kept for next time.

    numba looks for changes in the function's own file alone, so what is compiled together lies together.
    """

    def compile_later(function: Callable[..., Any]) -> Any:
        # a test run wraps every function in checks of its types, which cannot be compiled
        plain = inspect.unwrap(function)
        options: Any = numba.njit(error_model="numpy", nogil=nogil, fastmath=fastmath, inline=inline)
        loop = options(plain)
        loop._cache = _Cache(plain)
        return loop

    return compile_later


class NamedByContent(IndexDataCacheFile):
    """The files of one function: an index, and a file for every kind of arguments."""

    def save(self, key: Any, data: Any) -> None:
        """Keep `data`; the index may lose what others write into it at the same time, and nothing else."""
        said = repr((self._source_stamp, self._version, key))
        name = self._data_name_pattern.format(number=int(hashlib.sha256(said.encode()).hexdigest()[:15], 16))
        self._save_data(name, data)
        self._save_index({**self._load_index(), key: name})


class _Cache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = NamedByContent(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=self._impl.locator.get_source_stamp(),
        )
