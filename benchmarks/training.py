"""How fast one training step is: encoder, 15-step unroll, variance and covariance, Adam.

    python benchmarks/training.py [--rounds 6] [--batch 16] [--out FILE.md]

Segments of 16 frames of 2 x 64 x 64 random pixels and the world model of arXiv:2601.00844 (predictor
514 - 4 x 512 - 512), in each precision and memory layout, all in one process on one core. Paired rounds: a
round times one step of each variant of an encoder, in an order that turns around every round, and ratios to
plain fp32 are formed within rounds. Medians with [least-greatest]. Random pixels cost what images cost;
nothing here is about learning.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from jepaplan.data.normalise import ActionNormaliser, PixelNormaliser
from jepaplan.data.windows import WindowBatch
from jepaplan.models.encoders import CompactConfig, CompactEncoder, ImpalaEncoder
from jepaplan.models.predictors import MLPPredictor
from jepaplan.models.world_model import LatentWorldModel
from jepaplan.objectives.total import ObjectiveWeights, PredictionObjective
from measuring import Work, origin, paired, ratios, save, spread

FRAMES, SIDE = 16, 64
PLAIN = "fp32, channels first"


@dataclass(frozen=True)
class Variant:
    """Precision of activations and layout of images in memory; parameters and optimiser stay fp32.

    Channels last is what the library does on a processor; channels first is how recordings lie.
    """

    name: str
    bf16: bool
    channels_last: bool


VARIANTS = [
    Variant(PLAIN, bf16=False, channels_last=False),
    Variant("fp32, channels last", bf16=False, channels_last=True),
    Variant("bf16, channels first", bf16=True, channels_last=False),
    Variant("bf16, channels last", bf16=True, channels_last=True),
]
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "ImpalaEncoder": ImpalaEncoder,
    "CompactEncoder, flatten": CompactEncoder,
    "CompactEncoder, keypoints": lambda: CompactEncoder(CompactConfig(readout="keypoints")),
}


def window_batch(batch: int) -> WindowBatch:
    generator = torch.Generator().manual_seed(0)
    return WindowBatch(
        observations=torch.randint(
            0, 256, (batch, FRAMES, 2, SIDE, SIDE), dtype=torch.uint8, generator=generator
        ),
        actions=torch.randn(batch, FRAMES - 1, 2, generator=generator),
        frames=torch.arange(batch * FRAMES).view(batch, FRAMES),
        episode=torch.arange(batch),
        proprioception=None,
    )


class ChannelsFirst(PixelNormaliser):
    """Images in the layout of the recording."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised images."""
        return super().forward(pixels).contiguous()


def training_step(encoder: nn.Module, variant: Variant, batch: WindowBatch) -> Work:
    torch.manual_seed(0)
    normaliser = PixelNormaliser if variant.channels_last else ChannelsFirst
    pixels = normaliser(torch.tensor([0.5, 0.5]), torch.tensor([0.3, 0.3]), (2, SIDE, SIDE))
    world_model = LatentWorldModel(encoder, MLPPredictor(512, 2), pixels, ActionNormaliser.identity(2))
    objective = PredictionObjective(world_model, ObjectiveWeights(variance=1.0, covariance=1.0))
    optimiser = torch.optim.Adam(objective.parameters(), lr=1e-4)

    def step() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=variant.bf16):
            loss, _ = objective(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss

    return step


def rows(encoder: str, batch: int, rounds: int) -> list[str]:
    data = window_batch(batch)
    build = ENCODERS[encoder]
    parameters = sum(parameter.numel() for parameter in build().parameters())
    steps = {variant.name: training_step(build(), variant, data) for variant in VARIANTS}
    seconds = paired(steps, rounds)
    lines: list[str] = []
    for name, each in seconds.items():
        speed = [batch * FRAMES / second for second in each]
        slower = ratios(seconds[PLAIN], each)
        row = f"| {encoder} | {parameters / 1e6:.2f} M | {name} | {spread(each, 3)} | {spread(speed, 0)} |"
        lines.append(f"{row} {spread(slower, 2)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, help="paired rounds; a finding needs six or more")
    parser.add_argument("--batch", type=int, default=16, help="segments per step, of 16 frames each")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# One training step of the world model",
        "",
        *origin(),
        f"- {options.rounds} paired rounds, {options.batch} segments of {FRAMES} frames of 2 x {SIDE} x "
        f"{SIDE}; median [least-greatest]",
        "",
        "| encoder | parameters | variant | s/step | frames/s | fp32 takes times |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for encoder in ENCODERS:
        lines += rows(encoder, options.batch, options.rounds)
    save(options.out, "\n".join(lines))


if __name__ == "__main__":
    main()
