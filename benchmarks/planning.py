"""How fast one MPPI replan is, against the predictor's bare matrix products and against other planners.

    PYTHONPATH=src python benchmarks/planning.py --rounds 6 --out benchmarks/results/<date>_<hardware>.md

Everything runs in one process, in paired rounds: each round times every contestant once, in rotating order,
and its own reference. Ratios are formed within a round; the table shows their median and range. Machines
drift, so a ratio from two processes would be no finding.

The reference is the loop of the predictor's matrix products alone, with buffers allocated beforehand: no
bias, no norm, no activation, no cost, no sampling. It runs once with all rows in one product and once with
the rows of one chunk; the faster of the two counts. All contestants use one predictor, one cost (mean
square distance to the goal, summed over the steps), one iteration and the same counts of samples and steps.
The predictor takes its products from oneDNN where that is faster (`jepaplan.models.affine`), and so the rows
named after a planner alone are handed the fast predictor, peers too. Rows "plain torch" have the same weights
in plain `torch.nn.functional.linear`: what a user of a peer brings along. "oneDNN" is the bare loop of
oneDNN's products.

Peers are optional: whoever is missing gets a row that says so. The planner teaches the C library to keep
freed blocks; in one process its peers profit as well. Memory is the peak of a fresh process above what it
held before planning.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F

from jepaplan.costs.streaming import default_chunk_rows
from jepaplan.models.affine import affine, available
from jepaplan.models.predictors import MLPPredictor
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound, std_from_variance
from jepaplan.recipes.costs import Precision
from measuring import Work, origin, paired, ratios, rotating, save, spread, timed
from peers import Missing, pytorch_mppi, swm_with_a_plain_loop, swm_with_its_pldm, torchrl_mppi
from setting import ACTION_DIM, MAX_ACTION, Setting, Size

SIZES = {
    "paper": Size(problems=1, samples=2000, horizon=96, latent=512, hidden=512, layers=4),
    "real-time": Size(problems=16, samples=256, horizon=12, latent=512, hidden=512, layers=4),
    "small": Size(problems=64, samples=64, horizon=8, latent=64, hidden=256, layers=3),
}
OURS = "jepaplan MPPI"
BFLOAT16, INT8 = f"{OURS}, bfloat16", f"{OURS}, int8"
PLAIN = ", plain torch"


def ours(setting: Setting) -> Work:
    size = setting.size
    planner = MPPI(
        samples=size.samples,
        horizon=size.horizon,
        std=std_from_variance(12),
        bounds=NormBound(max_norm=MAX_ACTION),
    )
    generators = [torch.Generator().manual_seed(problem) for problem in range(size.problems)]

    def run() -> object:
        return planner.plan(setting.cost(), planner.initial(size.problems, ACTION_DIM), generators)

    return run


class PlainPredictor(torch.nn.Module):
    """The same weights and the same split of the first layer, with torch's own products."""

    def __init__(self, fast: MLPPredictor) -> None:
        super().__init__()
        self.fast = fast

    def forward(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The latent one step later."""
        fast, width = self.fast, self.fast.latent_width
        weight = fast.first.weight
        hidden = F.linear(latent, weight[:, :width], fast.first.bias).addmm_(action, weight[:, width:].T)
        for norm, linear in zip(fast.norms, [*fast.hidden, fast.last], strict=True):
            hidden = F.linear(F.relu(norm(hidden), inplace=True), linear.weight, linear.bias)
        return hidden


def plain(setting: Setting) -> Setting:
    """The same setting for those who bring an ordinary module."""
    twin = Setting(setting.size)
    twin.predictor = PlainPredictor(twin.predictor)
    return twin


def ours_in(precision: Precision) -> Callable[[Setting], Work]:
    return lambda setting: ours(Setting(setting.size, precision))


def bare_products(setting: Setting, rows: int, onednn: bool = False) -> Work:
    size = setting.size
    weights = [
        part.weight.detach() for part in setting.predictor.modules() if isinstance(part, torch.nn.Linear)
    ]
    hidden = size.hidden * (size.latent + ACTION_DIM + (size.layers - 1) * size.hidden + size.latent)
    if sum(weight.numel() for weight in weights) != hidden:
        raise RuntimeError(
            "the bare loop has lost a product of the predictor: every nn.Linear is thought to be one"
        )
    inputs = [torch.randn(rows, weight.shape[1]) for weight in weights]
    outputs = [torch.empty(rows, weight.shape[0]) for weight in weights]
    passes = size.problems * size.samples * size.horizon // rows

    def run() -> None:
        for _ in range(passes):
            for given, weight, out in zip(inputs, weights, outputs, strict=True):
                torch.mm(given, weight.T, out=out)

    def run_onednn() -> None:
        for _ in range(passes):
            for given, weight in zip(inputs, weights, strict=True):
                affine(given, weight, None)

    return run_onednn if onednn else run


def chunk_rows(size: Size) -> int:
    """The largest divisor of all rows that fits a chunk, so that both bare loops do the same work."""
    total = size.problems * size.samples
    most = min(default_chunk_rows(torch.device("cpu")), total)
    return next(rows for rows in range(most, 0, -1) if total % rows == 0)


PEERS = {
    "pytorch-mppi": pytorch_mppi,
    "torchrl MPPIPlanner": torchrl_mppi,
    "stable-worldmodel MPPISolver, plain loop": swm_with_a_plain_loop,
    "stable-worldmodel MPPISolver, its PLDM class": swm_with_its_pldm,
}
PEERS |= {
    f"pytorch-mppi{PLAIN}": lambda setting: pytorch_mppi(plain(setting)),
    f"stable-worldmodel MPPISolver, plain loop{PLAIN}": lambda setting: swm_with_a_plain_loop(plain(setting)),
}
CONTESTANTS = {
    OURS: ours,
    f"{OURS}{PLAIN}": lambda setting: ours(plain(setting)),
    BFLOAT16: ours_in("bf16"),
    INT8: ours_in("int8"),
    **PEERS,
}


@torch.no_grad()
def measure(size: Size, rounds: int, contestants: list[str]) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds per replan, by contestant and round; and why some could not run."""
    setting, runs, missing = Setting(size), {}, {}
    for name in contestants:
        try:
            # a short replan warms up, and tells early what does not run
            CONTESTANTS[name](Setting(replace(size, horizon=2)))()
            runs[name] = CONTESTANTS[name](setting)
        except Missing as error:
            missing[name] = str(error)
        except Exception as error:  # a peer that fails is a row that says so, not the end of the others
            if name not in PEERS:
                raise
            missing[name] = f"failed ({type(error).__name__}: {str(error)[:100]})"
    total = size.problems * size.samples
    runs |= {
        "bare, all rows": bare_products(setting, total),
        "bare, one chunk": bare_products(setting, chunk_rows(size)),
    }
    if available():
        runs["bare, one chunk, oneDNN"] = bare_products(setting, chunk_rows(size), onednn=True)
    repeats = max(1, round(0.5 / timed(runs["bare, all rows"], 1)))
    seconds = paired(
        runs,
        rounds,
        order=rotating,
        warm_up=False,
        repeats=repeats,
        on_round=lambda number: print(f"  round {number}/{rounds}", file=sys.stderr, flush=True),
    )
    seconds["bare"] = [
        min(pair) for pair in zip(seconds["bare, all rows"], seconds["bare, one chunk"], strict=True)
    ]
    return seconds, missing


def _status_megabytes(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return float("nan")


@torch.no_grad()
def peak_above_base(size: Size, name: str) -> float:
    """Megabytes that one replan adds to a fresh process in which everything else is loaded."""
    setting = Setting(size)
    CONTESTANTS[name](Setting(replace(size, horizon=2, samples=8, problems=1)))()
    replan = CONTESTANTS[name](setting)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    base = _status_megabytes("VmRSS")
    replan()
    return _status_megabytes("VmHWM") - base


def memory(size_name: str, name: str, threads: int) -> float | None:
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", size_name, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def table(
    size_name: str,
    seconds: dict[str, list[float]],
    missing: dict[str, str],
    memories: dict[str, float | None],
) -> str:
    size = SIZES[size_name]
    lines = [
        f"## {size_name}: {size.problems} problem(s) x {size.samples} samples x {size.horizon} steps, "
        "predictor "
        f"{size.latent} -> {size.layers} x {size.hidden} -> {size.latent}",
        "",
        "| planner | seconds per replan | bare loop / planner | planner / ours | peak MB above base |",
        "|---|---|---|---|---|",
    ]
    bare, our = seconds["bare"], seconds.get(OURS, seconds["bare"])
    for name in ("bare, all rows", "bare, one chunk", "bare, one chunk, oneDNN", *CONTESTANTS):
        if name in seconds:
            share, behind = spread(ratios(bare, seconds[name])), spread(ratios(seconds[name], our))
            held = memories.get(name)
            megabytes = "" if held is None else f"{held:.0f}"
            lines.append(f"| {name} | {spread(seconds[name], 3)} | {share} | {behind} | {megabytes} |")
        elif name in missing:
            lines.append(f"| {name} | {missing[name]} | | | |")
    return "\n".join([*lines, "", *verdicts(seconds)])


def verdicts(seconds: dict[str, list[float]]) -> list[str]:
    """The best of the peers against us, handed our predictor or bringing its own; then fewer bits."""
    handed = [name for name in PEERS if name in seconds and not name.endswith(PLAIN)]
    bringing = [name for name in PEERS if name in seconds and name.endswith(PLAIN)]
    pairs = [
        ("The best peer, handed our predictor, over ours", handed, OURS),
        ("The best peer with plain torch over ours", bringing, OURS),
        ("The best peer with plain torch over ours in bfloat16", bringing, BFLOAT16),
        ("The best peer with plain torch over ours in int8", bringing, INT8),
        ("Ours in float32 over ours in bfloat16", [OURS], BFLOAT16),
        ("Ours in float32 over ours in int8", [OURS], INT8),
        ("Ours with plain torch in float32 over ours in bfloat16", [f"{OURS}{PLAIN}"], BFLOAT16),
    ]
    lines = []
    for words, slower, faster in pairs:
        if slower and slower[0] in seconds and faster in seconds:
            best = [min(times) for times in zip(*(seconds[name] for name in slower), strict=True)]
            lines.append(f"- {words}: {spread(ratios(best, seconds[faster]))}")
    return lines


def heading(threads: int, rounds: int) -> str:
    lines = [
        f"# One MPPI replan, {datetime.now(UTC):%Y-%m-%d}",
        "",
        *origin(),
        f"- {threads} thread(s), {rounds} paired rounds, median [least-greatest]; the docstring of "
        "`benchmarks/planning.py` says how to read it",
    ]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch and its matrix products")
    parser.add_argument(
        "--rounds", type=int, default=6, help="paired rounds per size; a finding needs six or more"
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--no-peers", action="store_true", help="only our planner and the bare loops")
    parser.add_argument(
        "--no-memory", action="store_true", help="skip the fresh processes that measure memory"
    )
    parser.add_argument("--no-fewer-bits", action="store_true", help="skip bfloat16 and int8")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIZE", "CONTESTANT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        size_name, name = options.memory_of
        print(json.dumps(peak_above_base(SIZES[size_name], name)))
        return
    names = [name for name in CONTESTANTS if not (options.no_peers and name in PEERS)]
    names = [name for name in names if not (options.no_fewer_bits and name in (BFLOAT16, INT8))]
    parts = [heading(options.threads, options.rounds)]
    for size_name in options.sizes:
        print(size_name, file=sys.stderr)
        seconds, missing = measure(SIZES[size_name], options.rounds, names)
        wanted = [] if options.no_memory else [name for name in names if name in seconds]
        memories = {name: memory(size_name, name, options.threads) for name in wanted}
        parts.append(table(size_name, seconds, missing, memories))
        print(parts[-1], flush=True)
    save(options.out, "\n\n".join(parts))


if __name__ == "__main__":
    main()
