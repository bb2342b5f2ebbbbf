"""One self-contained page: what was asked, what came out, how sure that is, and why the rest failed.

`ReportData` says nothing about how its numbers were obtained; every part except the success rates may be
missing, and then its section is left out. The page needs no network: pictures, styles and scripts are in the
file.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

import jinja2

from jepaplan.evaluation import blame as blaming
from jepaplan.evaluation.blame import Blame
from jepaplan.evaluation.charts import Curve, curve_chart, interval_bar, number, share_bar
from jepaplan.evaluation.films import Film
from jepaplan.evaluation.pictures import MapPicture, colour_scale
from jepaplan.evaluation.position_probe import ProbeError
from jepaplan.evaluation.probes import RankCorrelation, RolloutError
from jepaplan.evaluation.statistics import PairedDifference, SuccessRate
from jepaplan.evaluation.value_diagnostics import ValueDiagnosis
from jepaplan.types import InputError

Kind = Literal["ours", "baseline", "reference"]


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One line of the success table."""

    name: str
    kind: Kind
    success: SuccessRate
    seconds_per_step: float
    evaluations_per_step: float
    note: str = ""  # what the method is, in a few words


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves that share their axes."""

    title: str
    curves: tuple[Curve, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class MapRow:
    """Maps of one layout and goal: the geodesic and what methods learned of it."""

    caption: str
    maps: tuple[MapPicture, ...]


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What one method's latents know."""

    method: str
    positions: tuple[ProbeError, ...] = ()
    rollouts: tuple[RolloutError, ...] = ()
    correlations: tuple[RankCorrelation, ...] = ()
    diagnosis: ValueDiagnosis | None = None  # of its distance, beside the exact cost to go
    way_found: SuccessRate | None = None  # by greedy descent


@dataclass(frozen=True, kw_only=True)
class CostShares:
    """What the plans of one method cost, term by term, on average over the decisions that were kept."""

    method: str
    terms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything the page can show."""

    title: str
    question: str  # what was asked, in a sentence or two
    success_rule: str  # `world.reached.__doc__`, quoted
    methods: tuple[MethodResult, ...]
    facts: Mapping[str, str] = field(default_factory=dict)  # task, data, budget
    frames: tuple[str, ...] = ()  # pictures.frame_picture: what is seen, and the goal
    recordings: str = ""  # pictures.contact_sheet
    comparisons: tuple[PairedDifference, ...] = ()
    charts: tuple[Chart, ...] = ()
    maps: tuple[MapRow, ...] = ()
    films: tuple[Film, ...] = ()
    blamed: str = ""  # the method whose failures were examined
    blames: tuple[Blame, ...] = ()
    probes: tuple[ProbeReport, ...] = ()
    costs: tuple[CostShares, ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds of each stage
    provenance: Mapping[str, str] = field(default_factory=dict)  # command, commit, data hash, seeds, hardware

    def __post_init__(self) -> None:
        """A report without a result is none."""
        if not self.methods:
            raise InputError("a report needs at least one method with its success rate; got none")

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        first = self.methods[0]
        words = (
            f"{first.name} reaches the goal in {first.success.successes} of {first.success.trials} tasks "
            f"({100 * first.success.rate:.0f}%, 95% interval {100 * first.success.low:.0f} to "
            f"{100 * first.success.high:.0f}%)."
        )
        words = f"{words} {_capital(self.comparisons[0].words())}" if self.comparisons else words
        return _capital(words)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def render_report(data: ReportData) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "curve_chart": _chart}
    page = environment.get_template("report.html.j2")
    return page.render(
        data=data,
        style=_template("report.css"),
        script=_template("report.js"),
        interval_bar=_bar,
        share_bar=share_bar,
        blame_words=blaming.WORDS,
        blame_summary=blaming.summary(data.blames),
        blame_counts=_counts(data.blames),
        scale=", ".join(colour_scale()),
    )


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to `path`, whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(render_report(data))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} \N{MICRO SIGN}s"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _bar(method: MethodResult) -> str:
    return interval_bar(method.success.rate, method.success.low, method.success.high, method.kind)


def _chart(chart: Chart) -> str:
    return curve_chart(chart.curves, chart.title)


def _counts(blames: tuple[Blame, ...]) -> dict[str, float]:
    counts = {name: sum(blame.verdict == name for blame in blames) for name in blaming.WORDS}
    return {name: float(count) for name, count in counts.items() if count}


def _template(name: str) -> str:
    return (resources.files("jepaplan.evaluation") / "templates" / name).read_text(encoding="utf-8")
