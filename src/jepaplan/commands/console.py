"""What every command shows: progress with time left on standard error, results on standard output."""

import textwrap
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

RESULTS = Console(soft_wrap=True)  # a path that was cut into lines could not be copied
NOTES = Console(stderr=True, soft_wrap=True)


@dataclass
class ProgressBoard:
    """Named bars, made when first reported; where there is no terminal, a line now and then instead."""

    bars: Progress
    every: float = 10.0  # seconds between lines where there is no terminal
    _tasks: dict[str, TaskID] = field(default_factory=dict[str, TaskID], init=False)
    _said: dict[str, float] = field(default_factory=dict[str, float], init=False)

    def report(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` of `what` are done."""
        if what not in self._tasks:
            self._tasks[what] = self.bars.add_task(what, total=total, note=note)
        self.bars.update(self._tasks[what], completed=done, total=total, note=note)
        if NOTES.is_terminal:
            return
        now = time.monotonic()
        if done >= total or now - self._said.get(what, -self.every) >= self.every:
            self._said[what] = now
            # Tasks are listed by age, not by number: bars may have been dropped in between.
            remaining = next(task for task in self.bars.tasks if task.id == self._tasks[what]).time_remaining
            left = f", {remaining:.0f} s left" if remaining and done < total else ""
            NOTES.print(f"{what}: {done}/{total}{left} {note}".rstrip(), markup=False, highlight=False)

    def drop(self, what: str) -> None:
        """Take the bar of `what` away: where many follow one another, finished ones would fill the screen."""
        self._said.pop(what, None)
        if what in self._tasks:
            self.bars.remove_task(self._tasks.pop(what))

    def warn(self, words: str) -> None:
        """Say something once, above the bars."""
        if words not in self._said:
            self._said[words] = time.monotonic()
            NOTES.print(f"[yellow]warning:[/yellow] {escape(words)}", highlight=False)


@contextmanager
def progress_board() -> Generator[ProgressBoard, None, None]:
    """A board for the duration of a command."""
    columns = (
        TextColumn("{task.description}", justify="right"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=NOTES, disable=not NOTES.is_terminal) as bars:
        yield ProgressBoard(bars)


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A table whose first column is text and the others numbers."""
    made = Table(
        title=escape(title), title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD
    )
    for number, name in enumerate(columns):
        # In a narrow window a header is broken into lines so that names and numbers need not be.
        widest = max((len(line) for row in rows for line in row[number].splitlines()), default=1)
        header = textwrap.fill(name, max(widest, *map(len, name.split())))
        made.add_column(header, justify="left" if number == 0 else "right", no_wrap=number > 0)
    for row in rows:
        made.add_row(*map(escape, row))
    return made
