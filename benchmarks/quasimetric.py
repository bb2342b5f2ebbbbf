"""How fast interval quasimetric distances are, against the sort-based algorithm that the literature uses.

    python benchmarks/quasimetric.py [--rounds 8] [--out FILE.md]

The published package (`torchqmet`) sorts the 2 l endpoints of each component with their marks, counts open
intervals by a cumulative sum, and integrates. It is timed where it can be imported; elsewhere its algorithm
is timed in our own eager transcription, and the table says so. Both compute the same numbers, checked before
anything is timed.

Everything runs in one process on one core, in paired rounds: a round times each contestant once, and ratios
are formed within rounds. The tables show medians and [least-greatest]. Memory is what autograd keeps between
forward and backward.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jepaplan.models.interval_unions import pairwise_union_lengths
from jepaplan.models.quasimetric import iqe_components
from measuring import Work, origin, paired, ratios, save, spread

Components = Callable[[Tensor, Tensor], Tensor]
OURS = "jepaplan"


@dataclass(frozen=True)
class Case:
    """Shapes of sources and goals (..., components, intervals per component)."""

    name: str
    source: tuple[int, ...]
    goal: tuple[int, ...]
    all_pairs: bool = False


CASES = [
    Case("1024 pairs, 32 x 16", (1024, 32, 16), (1024, 32, 16)),
    Case("65536 pairs, 8 x 8", (65536, 8, 8), (65536, 8, 8)),
    Case("2000 latents to one goal, 32 x 16", (2000, 32, 16), (1, 32, 16)),
    Case("960 states x 65 goals, 32 x 16", (960, 32, 16), (65, 32, 16), all_pairs=True),
]


def sorted_endpoints(source: Tensor, goal: Tensor) -> Tensor:
    """The published algorithm, transcribed: sort all endpoints, count what is open, add what is covered."""
    source, goal = torch.broadcast_tensors(source, goal)
    intervals = source.shape[-1]
    counts = (source < goal).long()  # empty intervals open and close nothing
    endpoints, origin = torch.cat([source, goal], dim=-1).sort(dim=-1)
    marks = torch.where(origin < intervals, 1, -1) * counts.gather(-1, origin % intervals)
    covered = (marks.cumsum(-1) > 0).to(endpoints.dtype)
    return (endpoints.diff(dim=-1) * covered[..., :-1]).sum(-1)


def reference() -> tuple[str, Components]:
    try:
        from torchqmet.iqe import iqe  # pyright: ignore
    except ImportError:
        return "sorted endpoints (our transcription; torchqmet is not installed)", sorted_endpoints
    return "torchqmet", iqe


def forward(components: Components, source: Tensor, goal: Tensor) -> Work:
    def run() -> object:
        with torch.no_grad():
            return components(source, goal)

    return run


def forward_backward(components: Components, source: Tensor, goal: Tensor) -> Work:
    source, goal = source.clone().requires_grad_(), goal.clone().requires_grad_()
    return lambda: torch.autograd.grad(components(source, goal).sum(), (source, goal))


def kept_megabytes(components: Components, source: Tensor, goal: Tensor) -> float:
    """Bytes saved for the backward pass, each storage once; the inputs themselves do not count."""
    source, goal = source.clone().requires_grad_(), goal.clone().requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = components(source, goal)  # held, so that no storage is freed and counted twice
    for tensor in (source, goal):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(kept.values()) / 2**20


def contestants(case: Case, theirs: Components) -> dict[str, Components]:
    if not case.all_pairs:
        return {OURS: iqe_components, "theirs": theirs}
    return {OURS: pairwise_union_lengths, "theirs": lambda source, goal: theirs(source[:, None], goal[None])}


def rows(case: Case, theirs: Components, rounds: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(case.source, generator=generator)
    goal = torch.randn(case.goal, generator=generator)
    functions = contestants(case, theirs)
    torch.testing.assert_close(functions[OURS](source, goal), functions["theirs"](source, goal))
    megabytes = {name: kept_megabytes(function, source, goal) for name, function in functions.items()}
    lines: list[str] = []
    for what, build in (("forward", forward), ("forward + backward", forward_backward)):
        run = {name: build(function, source, goal) for name, function in functions.items()}
        seconds = paired(run, rounds)
        slower = ratios(seconds["theirs"], seconds[OURS])
        times = " | ".join(spread([1e3 * each for each in seconds[name]], 1) for name in (OURS, "theirs"))
        memory = "" if what == "forward" else f"{megabytes[OURS]:.0f} / {megabytes['theirs']:.0f}"
        lines.append(f"| {case.name} | {what} | {times} | {spread(slower, 1)} | {memory} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8, help="paired rounds; a finding needs six or more")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    name, theirs = reference()
    lines = [
        "# Interval quasimetric distances",
        "",
        *origin(),
        f"- Compared with: {name}",
        f"- {options.rounds} paired rounds, fp32; median [least-greatest]",
        "",
        "| case | pass | jepaplan, ms | sort-based, ms | ratio | MB kept, ours / theirs |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for case in CASES:
        lines += rows(case, theirs, options.rounds)
    save(options.out, "\n".join(lines))


if __name__ == "__main__":
    main()
