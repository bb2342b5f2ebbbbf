"""A cost is a weighted sum of named terms, bound to a world model, latents and goals; it can explain itself.

    cost = WeightedSum({"goal": (1.0, GoalDistance(distance=head)), "effort": (0.01, ActionEffort())})
    sequence_cost = cost.bind(world_model, latent, goal)   # what planners see: actions B S H A -> costs B S
    sequence_cost.breakdown(actions)                       # {"goal": B S, "effort": B S}, before the sum

Samples go through the world model in chunks of at most `chunk_rows` rows, each chunk from its first step to
its last. A chunk's activations stay in the processor's cache, and a replan never holds more latents than
one chunk's.

Imagination runs in the dtype of the latent given to `bind`, or in `dtype`: bfloat16 weights in the
predictor want `dtype=torch.bfloat16`. Terms always see float32 or better, because a bfloat16 sum over 96
steps would lose the differences that rank the samples.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.costs.terms import ImaginedStep, PathTerm, StepwiseTerm
from jepaplan.interfaces import WorldModel
from jepaplan.types import InputError, Rollout

Term = StepwiseTerm | PathTerm
PATH_BYTES = 32 * 2**20  # what whole paths of one chunk may occupy, when some term asks for whole paths


@dataclass(frozen=True)
class WeightedSum:
    """Named terms with their weights; `bind` makes them a cost of action sequences."""

    terms: Mapping[str, tuple[float, Term]]
    chunk_rows: int | None = None  # problems x samples imagined at once; None: see `default_chunk_rows`
    dtype: torch.dtype | None = None  # of the imagined latents, thus of the predictor; None: as encoded

    def __post_init__(self) -> None:
        """Refuse an empty sum, and terms that are neither stepwise nor over paths."""
        if not self.terms:
            raise InputError(
                'a cost needs at least one term, such as {"goal": (1.0, GoalDistance(distance=...))}'
            )
        given: dict[str, object] = {name: term for name, (_, term) in self.terms.items()}
        for name, term in given.items():
            if not isinstance(term, StepwiseTerm | PathTerm):
                raise InputError(
                    f"cost term '{name}' is a {type(term).__name__}, which has neither `accumulate` "
                    "(stepwise) nor `over_path` (whole paths); "
                    "a bare distance goes in as GoalDistance(distance=...)"
                )
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise InputError(
                f"chunk_rows must be at least 1, or None to let the device decide; got {self.chunk_rows}"
            )

    def bind(
        self, world_model: WorldModel, latent: Float[Tensor, "B *latent"], goal: Float[Tensor, "B *latent"]
    ) -> "BoundSum":
        """The cost of action sequences that start at `latent` and want `goal`."""
        return BoundSum(self, world_model, latent.to(self.dtype or latent.dtype), goal)


@dataclass(frozen=True)
class BoundSum:
    """A `SequenceCost`: the terms for B problems, each with its own latent and goal."""

    cost: WeightedSum
    world_model: WorldModel
    latent: Float[Tensor, "B *latent"]
    goal: Float[Tensor, "B *latent"]

    def __call__(self, actions: Float[Tensor, "B S H A"]) -> Float[Tensor, "B S"]:
        """The weighted sum of all terms."""
        return torch.stack(list(self.breakdown(actions).values())).sum(dim=0)

    def breakdown(self, actions: Float[Tensor, "B S H A"]) -> dict[str, Float[Tensor, "B S"]]:
        """Each term's weighted share; the shares sum to the cost."""
        self._check(actions)
        keep_freed_memory()
        dtype = torch.promote_types(actions.dtype, torch.float32)
        shares = {name: actions.new_empty(actions.shape[:2], dtype=dtype) for name in self.cost.terms}
        for problems, samples in self._chunks(actions):
            for name, total in self._totals(actions[problems, samples], problems).items():
                shares[name][problems, samples] = self.cost.terms[name][0] * total
        for name, share in shares.items():
            self._refuse_nan(name, share)
        return shares

    def _totals(self, actions: Float[Tensor, "b s H A"], problems: slice) -> dict[str, Tensor]:
        stepwise = {
            name: term for name, (_, term) in self.cost.terms.items() if isinstance(term, StepwiseTerm)
        }
        whole = {name: term for name, (_, term) in self.cost.terms.items() if isinstance(term, PathTerm)}
        goal = _at_least_float32(self.goal[problems, None])
        totals: dict[str, Tensor | None] = dict.fromkeys(self.cost.terms)
        paths: Tensor | None = None
        if whole:
            paths = self.world_model.rollout(self.latent[problems], actions.to(self.latent.dtype))
            paths = _at_least_float32(paths)
            totals |= {name: term.over_path(Rollout(actions, paths), goal) for name, term in whole.items()}
        if stepwise:
            latents = self._imagine(actions, problems) if paths is None else paths[:, :, 1:].unbind(dim=2)
            horizon = actions.shape[2]
            for index, latent in enumerate(latents, start=1):
                step = ImaginedStep(index, horizon, latent, actions[:, :, index - 1], goal)
                for name, term in stepwise.items():
                    totals[name] = term.accumulate(totals[name], step)
        return {name: self._counted(name, total) for name, total in totals.items()}

    def _imagine(
        self, actions: Float[Tensor, "b s H A"], problems: slice
    ) -> Iterator[Float[Tensor, "b s *latent"]]:
        grid = actions.shape[:2]
        # one contiguous block of actions per step, so that the predictor reads no strided memory
        by_step = actions.flatten(0, 1).transpose(0, 1).to(self.latent.dtype).contiguous()
        latent = self.latent[problems].repeat_interleave(grid[1], dim=0)
        for action in by_step:
            latent = self.world_model.step(latent, action)
            yield _at_least_float32(latent).unflatten(0, grid)

    def _chunks(self, actions: Float[Tensor, "B S H A"]) -> Iterator[tuple[slice, slice]]:
        problems, samples, horizon, _ = actions.shape
        rows = self.cost.chunk_rows or default_chunk_rows(actions.device)
        if any(isinstance(term, PathTerm) for _, term in self.cost.terms.values()):
            rows = min(rows, max(1, PATH_BYTES // (4 * (horizon + 1) * self.latent[0].numel())))
        across, along = max(1, rows // samples), _even_part(samples, rows)
        for problem in range(0, problems, across):
            for sample in range(0, samples, along):
                yield slice(problem, problem + across), slice(sample, sample + along)

    def _check(self, actions: Tensor) -> None:
        if len(actions) != len(self.latent) or len(actions) != len(self.goal):
            raise InputError(
                f"actions are for {len(actions)} problems, but this cost was bound to "
                f"{len(self.latent)} latents and {len(self.goal)} goals; "
                "bind it again for the problems that are left"
            )
        if actions.shape[-1] != self.world_model.action_dim:
            raise InputError(
                f"actions have {actions.shape[-1]} components per step; this world model takes "
                f"{self.world_model.action_dim}"
            )

    @staticmethod
    def _counted(name: str, total: Tensor | None) -> Tensor:
        if total is None:
            raise InputError(f"cost term '{name}' counted nothing; plans need a horizon of at least one step")
        return total

    @staticmethod
    def _refuse_nan(name: str, share: Tensor) -> None:
        undefined = share.isnan()
        if undefined.any():
            problem = int(undefined.any(dim=-1).nonzero()[0])
            raise InputError(
                f"cost term '{name}' is NaN for {int(undefined[problem].sum())} of {share.shape[1]} "
                f"samples of problem {problem}. Look at the latents: the world model may diverge under "
                "actions larger than it was trained with (give the planner bounds or a smaller std), or its "
                "weights may hold NaN."
            )


def default_chunk_rows(device: torch.device) -> int:
    """On a CPU what keeps each thread's activations in its cache, elsewhere what keeps the device busy."""
    return min(4096, 512 * torch.get_num_threads()) if device.type == "cpu" else 65536


@functools.cache
def keep_freed_memory() -> None:
    """Teach the C library, once per process, to keep blocks of a chunk's size when they are freed.

    glibc first returns every freed block above 128 KB to the kernel, and each layer of each imagined step
    then waits for fresh pages: a fifth of a replan's time. Freeing one large block raises that limit to the
    block's size (mallopt(3), M_MMAP_THRESHOLD). The block is never touched; other C libraries do not mind.
    """
    torch.empty(16 * 2**20, dtype=torch.uint8)


def _even_part(total: int, limit: int) -> int:
    # 2000 rows under a limit of 512 go as 4 x 500, not 3 x 512 + 464: equal parts, none of them tiny
    parts = -(-total // limit)
    return -(-total // parts)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
