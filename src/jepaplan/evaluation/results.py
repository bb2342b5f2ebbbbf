"""Rows of `results.json`: one evaluation of one method on one task, for machines.

Every row carries its interval and its address: which instances, which commit, which hardware, which command.
Files are written whole or not at all, and a file with a missing, unknown or impossible field is refused.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepaplan.evaluation.statistics import SuccessRate
from jepaplan.types import InputError

FIELDS: Mapping[str, tuple[type, ...]] = {
    "task": (str,),
    "method": (str,),
    "instances": (dict,),
    "success": (dict,),
    "training_seeds": (list,),
    "evaluations_per_step": (int, float, type(None)),
    "seconds_per_step": (int, float, type(None)),
    "commit": (str,),
    "hardware": (str,),
    "command": (str,),
}
INSTANCE_FIELDS: Mapping[str, tuple[type, ...]] = {"file": (str,), "split": (str,)}
SUCCESS_FIELDS: Mapping[str, tuple[type, ...]] = {
    "rate": (int, float),
    "low": (int, float),
    "high": (int, float),
    "successes": (int,),
    "trials": (int,),
}


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One method on one task."""

    task: str
    method: str
    instance_file: str
    split: str
    success: SuccessRate
    training_seeds: tuple[int, ...]  # empty for methods that learn nothing
    evaluations_per_step: float | None  # predictor calls per environment step and problem; None: no planning
    seconds_per_step: float | None  # wall time of one step of one problem, when all are planned as one batch
    commit: str
    hardware: str
    command: str

    def as_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        success = self.success
        return {
            "task": self.task,
            "method": self.method,
            "instances": {"file": self.instance_file, "split": self.split},
            "success": {
                "rate": round(success.rate, 6),
                "low": round(success.low, 6),
                "high": round(success.high, 6),
                "successes": success.successes,
                "trials": success.trials,
            },
            "training_seeds": list(self.training_seeds),
            "evaluations_per_step": self.evaluations_per_step,
            "seconds_per_step": self.seconds_per_step,
            "commit": self.commit,
            "hardware": self.hardware,
            "command": self.command,
        }


def row_from_json(row: Mapping[str, Any], where: str = "this row") -> ResultRow:
    """Check one row and make the record of it."""
    _check_fields(row, FIELDS, where)
    _check_fields(row["instances"], INSTANCE_FIELDS, f"{where}, `instances`")
    _check_fields(row["success"], SUCCESS_FIELDS, f"{where}, `success`")
    success = row["success"]
    rate = SuccessRate(success["successes"], success["trials"], (success["low"], success["high"]))
    if abs(rate.rate - success["rate"]) > 1e-5 or not 0 <= success["low"] <= success["high"] <= 1:
        raise InputError(
            f"{where}: rate {success['rate']} with interval [{success['low']}, {success['high']}] cannot be "
            f"that of {rate.successes} successes in {rate.trials} trials; `ResultRow.as_json` writes rows."
        )
    return ResultRow(
        task=row["task"],
        method=row["method"],
        instance_file=row["instances"]["file"],
        split=row["instances"]["split"],
        success=rate,
        training_seeds=tuple(row["training_seeds"]),
        evaluations_per_step=_number(row["evaluations_per_step"]),
        seconds_per_step=_number(row["seconds_per_step"]),
        commit=row["commit"],
        hardware=row["hardware"],
        command=row["command"],
    )


def _number(value: int | float | None) -> float | None:
    return None if value is None else float(value)


def rows_text(rows: Sequence[ResultRow]) -> str:
    """The rows as one JSON document: what `results.json` holds and what `--json` prints."""
    return json.dumps([row.as_json() for row in rows], indent=2, allow_nan=False) + "\n"


def write_rows(path: Path, rows: Sequence[ResultRow]) -> None:
    """Write `rows` to `path` whole: a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(rows_text(rows))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_rows(path: Path) -> list[ResultRow]:
    """Read and check a results file."""
    if not path.is_file():
        raise InputError(
            f"there is no results file {path}; `jepaplan evaluate <run>` writes one into its folder."
        )
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}); evaluate again to rewrite it.") from error
    if not isinstance(rows, list):
        raise InputError(f"{path} holds a JSON {type(rows).__name__}; a results file is a list of rows.")
    return [row_from_json(row, f"{path}, row {number}") for number, row in enumerate(rows)]


def _check_fields(row: Any, fields: Mapping[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is {row!r}; expected an object with the fields {', '.join(fields)}.")
    missing, unknown = fields.keys() - row.keys(), row.keys() - fields.keys()
    if missing or unknown:
        raise InputError(
            f"{where}: missing {sorted(missing)}, unknown {sorted(map(str, unknown))}; "
            f"the fields are {', '.join(fields)}."
        )
    for name, kinds in fields.items():
        # A JSON true is a Python int: never a count here.
        if not isinstance(row[name], kinds) or isinstance(row[name], bool):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(f"{where}: `{name}` is {row[name]!r}; expected {expected}.")


def in_milliseconds(seconds: float) -> str:
    """Two digits, or all before the point: `0.85 ms`, `11 ms`, `121 ms`."""
    milliseconds = 1e3 * seconds
    return f"{milliseconds:,.0f} ms" if milliseconds >= 99.5 else f"{milliseconds:.2g} ms"


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """The rows as a table for a page: success with its interval and counts, and what planning costs."""
    lines = [
        "| method | success, 95 % interval | model calls per step | planning per step |",
        "|---|---|---|---|",
    ]
    for row in rows:
        calls = "" if row.evaluations_per_step is None else f"{row.evaluations_per_step:,.0f}"
        milliseconds = "" if row.seconds_per_step is None else in_milliseconds(row.seconds_per_step)
        lines.append(f"| {row.method} | {row.success} | {calls} | {milliseconds} |")
    return "\n".join(lines) + "\n"


def write_page(path: Path, title: str, rows: Sequence[ResultRow], words: Sequence[str] = ()) -> None:
    """A page of results with its provenance, and its twin for machines beside it: the same name, `.json`."""
    first = rows[0]
    seeds = sorted({seed for row in rows for seed in row.training_seeds})
    text = [
        f"# {title}",
        "",
        f"Made by `{first.command}` at commit {first.commit}. Hardware: {first.hardware}. Task {first.task}, "
        f"instances `{first.instance_file}`, training seeds {', '.join(map(str, seeds)) or 'none'}. Planning "
        "per step: wall time of one step of one problem, all problems planned as one batch.",
        "",
        markdown_table(rows),
        *words,
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    write_rows(path.with_suffix(".json"), rows)
