"""One update of video pretraining: what it does, what the machine could do, and what the formula makes of it.

    seconds = linear / R + attention / A + numbers / B + blocks / C

    linear, attention    operations of `models/video_cost`, those between tokens apart from the linear maps
    numbers              what is written beside products. Per token and block of width D and hidden width H:
                         forward 7 D + H (norms, turns, sums, activation, a copy of what was gathered),
                         forward and backward 35 D + 2 H (also transposed factors of weights' gradients, and
                         12 D to join the gradients of queries, keys and values). Per parameter 10: clipping,
                         AdamW, the average
    blocks               passes of blocks, forward and backward; a third of one where only forward
    R, A, B              rates of this machine, measured alone on tensors of the model's own sizes: oneDNN's
                         products of a block's four linear maps, torch's attention, norms and activations
    C                    passes per second of a small block on one token: calling, with nothing to do

Nothing is fitted to the time of an update. Each size runs in a process of its own, so that the peak of its
memory is its own. Times are processor times of one thread: shared machines wait, processors count.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from jepaplan.data.clips import ClipBatch
from jepaplan.data.tubelet_masks import BOTH_RANGES, TubeletMasks, draw_masks
from jepaplan.models.affine import affine
from jepaplan.models.masked_predictor import PREDICTOR, MaskedPredictor, MaskedPredictorConfig
from jepaplan.models.rotary import rotation_of_grid
from jepaplan.models.transformer import Block, hidden_width
from jepaplan.models.video_cost import (
    activation_bytes,
    encoder_parameters,
    predictor_parameters,
    state_bytes,
    step_flops,
)
from jepaplan.models.video_vit import VIDEO_SIZES, VideoTransformer, VideoTransformerConfig
from jepaplan.objectives.masked_latents import MaskedLatents
from measuring import Work, paired

Transformer = VideoTransformerConfig | MaskedPredictorConfig
Ratios = tuple[tuple[float, float], ...]  # shares of context and target tokens, one pair per mask
UPDATE, DEFAULT, ONEDNN = "update", "default", "oneDNN"
ATTENTION, WRITTEN, CALLS = "attention", "written", "calls"
ENOUGH = 4e9  # operations or, a tenth of it, numbers of one timing of a part: tens of milliseconds


@dataclass(frozen=True, kw_only=True)
class Case:
    """A size, how many clips an update takes, and over how many clips its masks are equalised."""

    size: str
    clips: int
    equalised: int
    patient: bool = False  # an update takes many seconds

    @property
    def encoder(self) -> VideoTransformerConfig:
        """Its shape."""
        return VIDEO_SIZES[self.size]

    @property
    def predictor(self) -> MaskedPredictorConfig:
        """Its shape."""
        return PREDICTOR[self.size]


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What one update does."""

    linear: float
    attention: float
    numbers: float
    blocks: float

    @property
    def products(self) -> float:
        """All that `video_cost.step_flops` counts."""
        return self.linear + self.attention

    def seconds(self, rates: Mapping[str, float]) -> float:
        """What the formula says."""
        products = ((self.linear, ONEDNN), (self.attention, ATTENTION))
        parts = (*products, (self.numbers, WRITTEN), (self.blocks, CALLS))
        return sum(amount / rates[name] for amount, name in parts)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one size: seconds per update, rates of the parts per second, both by round, and memory in bytes."""

    operations: Operations
    seconds: list[float]
    rates: dict[str, list[float]]
    waited: float  # time on the clock over processor time
    peak: int
    predicted_peak: int


def masks_of(case: Case) -> tuple[TubeletMasks, ...]:
    """As many clips share their lengths as in the published micro-batch; the first of them are used."""
    generator = torch.Generator().manual_seed(0)
    drawn = draw_masks(case.encoder.grid, max(case.equalised, case.clips), BOTH_RANGES, generator)
    return tuple(TubeletMasks(one.context[: case.clips], one.target[: case.clips], one.grid) for one in drawn)


def ratios_of(case: Case) -> Ratios:
    return tuple((one.context_ratio, one.target_ratio) for one in masks_of(case))


def operations(case: Case, ratios: Ratios) -> Operations:
    """Of one update."""
    encoder, predictor, tokens = case.encoder, case.predictor, case.encoder.tokens
    attention, numbers = _attention(encoder, tokens), _written(encoder, tokens, learns=False)
    for context, target in ratios:
        seen, all_tokens = context * tokens, (context + target) * tokens
        attention += 3 * (_attention(encoder, seen) + _attention(predictor, all_tokens))
        numbers += _written(encoder, seen, learns=True) + _written(predictor, all_tokens, learns=True)
    products = step_flops(encoder, predictor, ratios).total
    parameters = encoder_parameters(encoder) + predictor_parameters(encoder.width, predictor)
    return Operations(
        linear=case.clips * (products - attention),
        attention=case.clips * attention,
        numbers=case.clips * numbers + 10 * parameters,
        blocks=encoder.depth / 3 + len(ratios) * (encoder.depth + predictor.depth),
    )


def predicted_bytes(case: Case, ratios: Ratios) -> int:
    """State and kept activations."""
    kept = case.clips * activation_bytes(case.encoder, case.predictor, ratios)
    return state_bytes(case.encoder, case.predictor) + kept


def _attention(config: Transformer, tokens: float) -> float:
    return 4.0 * tokens * tokens * config.width * config.depth


def _written(config: Transformer, tokens: float, *, learns: bool) -> float:
    width, hidden = config.width, hidden_width(config.width, config.mlp_ratio)
    return tokens * config.depth * (35 * width + 2 * hidden if learns else 7 * width + hidden)


def update_of(case: Case) -> Work:
    """Targets, two contexts and predictions, backward, clipping, AdamW, the average: what a recipe does."""
    torch.manual_seed(0)
    encoder = case.encoder
    predictor = MaskedPredictor(encoder.width, case.predictor)
    objective = MaskedLatents(VideoTransformer(encoder), predictor)
    shape = (case.clips, encoder.frames, encoder.channels, encoder.image, encoder.image)
    batch = ClipBatch(torch.randint(0, 256, shape, dtype=torch.uint8), masks_of(case))
    learning = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=1e-4, weight_decay=0.04, foreach=True)

    def update() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss, _ = objective(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0, foreach=True)
        optimiser.step()
        objective.after_update(1)

    return update


def parts_of(case: Case) -> dict[str, tuple[Work, float]]:
    """Each part alone, on tensors of the model's own sizes; and the operations or numbers of a call."""
    encoder, rows = case.encoder, case.clips * case.encoder.tokens
    hidden = hidden_width(encoder.width, encoder.mlp_ratio)
    shapes = [(encoder.width, 3 * encoder.width), (encoder.width, encoder.width)]
    shapes += [(encoder.width, hidden), (hidden, encoder.width)]
    layers = [(torch.randn(rows, given), torch.randn(out, given), torch.randn(out)) for given, out in shapes]
    flops = sum(2.0 * rows * given * out for given, out in shapes)

    def products(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Work:
        def work() -> None:
            with torch.no_grad():
                for layer in layers:
                    product(*layer)

        return work

    return {
        DEFAULT: _often(products(F.linear), flops, ENOUGH),
        ONEDNN: _often(products(affine), flops, ENOUGH),
        ATTENTION: _attention_alone(case),
        WRITTEN: _written_alone(rows, encoder.width, hidden),
        CALLS: _calls_alone(),
    }


def _attention_alone(case: Case) -> tuple[Work, float]:
    """The target's, forward; and the predictor's over its longest sequence, forward and backward."""
    encoder, predictor = case.encoder, case.predictor
    longest = round(max(context + target for context, target in ratios_of(case)) * encoder.tokens)
    given: list[list[Tensor]] = []
    for config, tokens in ((encoder, encoder.tokens), (predictor, longest)):
        shape = (case.clips, config.heads, tokens, config.width // config.heads)
        given.append([torch.randn(shape, requires_grad=config is predictor) for _ in range(3)])

    def work() -> None:
        F.scaled_dot_product_attention(*given[0])
        gathered = F.scaled_dot_product_attention(*given[1])
        torch.autograd.grad(gathered, given[1], torch.ones_like(gathered))

    per_layer = _attention(encoder, encoder.tokens) / encoder.depth
    per_layer += 3 * _attention(predictor, longest) / predictor.depth
    return _often(work, case.clips * per_layer, ENOUGH)


def _written_alone(rows: int, width: int, hidden: int) -> tuple[Work, float]:
    """Norm, sum and activation, forward and backward."""
    tokens, inner = (torch.randn(rows, size, requires_grad=True) for size in (width, hidden))
    gradients = (torch.randn(rows, width), torch.randn(rows, hidden))

    def work() -> None:
        outputs = (tokens + F.layer_norm(tokens, (width,)), F.gelu(inner))
        torch.autograd.grad(outputs, (tokens, inner), gradients)

    # norm, sum and activation; gradient of the norm, of its sum with the other, of the activation
    return _often(work, rows * (4.0 * width + 2 * hidden), ENOUGH / 10)


def _calls_alone() -> tuple[Work, float]:
    """Forward and backward of a block that has next to nothing to compute."""
    width, heads = PREDICTOR["nano"].width, PREDICTOR["nano"].heads
    block, token = Block(width, heads, 4.0), torch.randn(1, 1, width, requires_grad=True)
    rotation = rotation_of_grid((1, 1, 1), width // heads, "interleaved", token.device, token.dtype)

    def work() -> None:
        block(token, rotation).sum().backward()

    return _often(work, 1.0, 20.0)


def _often(work: Work, amount: float, enough: float) -> tuple[Work, float]:
    repeats = math.ceil(enough / amount)

    def repeated() -> None:
        for _ in range(repeats):
            work()

    return repeated, repeats * amount


def processor_seconds(works: Mapping[str, Work], rounds: int) -> tuple[dict[str, list[float]], float]:
    """Paired rounds in processor time; and how many times longer the clock said it took. Warm up before."""
    taken: dict[str, list[float]] = {name: [] for name in works}

    def clocked(name: str) -> Work:
        def work() -> None:
            began = time.process_time()
            works[name]()
            taken[name].append(time.process_time() - began)

        return work

    by_clock = paired({name: clocked(name) for name in works}, rounds, warm_up=False)
    return taken, sum(map(sum, by_clock.values())) / sum(map(sum, taken.values()))


def measure(case: Case, rounds: int) -> Measured:
    """In a fresh process: first what an update needs and takes, then everything in paired rounds."""
    torch.set_num_threads(1)
    update_of(Case(size="nano", clips=1, equalised=1))()  # code and tables that every size needs
    before = _memory("VmRSS")
    update = update_of(case)
    update()
    update()  # only from the second on are the optimiser's moments there
    peak = _memory("VmHWM") - before
    parts = parts_of(case)
    works = {name: work for name, (work, _) in parts.items()}
    for work in works.values():
        work()
    taken, waited = processor_seconds({UPDATE: update} | works, rounds)
    ratios = ratios_of(case)
    return Measured(
        operations=operations(case, ratios),
        seconds=taken[UPDATE],
        rates={name: [amount / each for each in taken[name]] for name, (_, amount) in parts.items()},
        waited=waited,
        peak=peak,
        predicted_peak=predicted_bytes(case, ratios),
    )


def _memory(field: str) -> int:
    """Bytes of this process by Linux's account: VmRSS now, VmHWM at most so far; elsewhere 0."""
    account = Path("/proc/self/status")
    if not account.exists():
        return 0
    lines = account.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
