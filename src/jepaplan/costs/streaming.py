"""A weighted sum of terms for B problems, imagined in chunks or one step at a time.

Samples go through the world model in chunks of at most `chunk_rows` rows, each chunk from its first step to
its last. A chunk's activations stay in the processor's cache, and a replan never holds more latents than
one chunk's. Where a chunk is smaller than `chunk_rows`, terms look at some of its steps at once: a value
network then gets 200 rows in one call rather than 16 in each of twelve.

Imagination runs in the dtype of the latent that the cost was bound to. Terms always see float32 or better,
because a bfloat16 sum over 96 steps would lose the differences that rank the samples.
"""

import ctypes
import functools
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.costs.steps import (
    AdditiveTerm,
    ImaginedStep,
    JointSteps,
    JointTerm,
    PathTerm,
    StepwiseTerm,
    Term,
)
from jepaplan.interfaces import WorldModel
from jepaplan.types import Expansion, InputError, Rollout

PATH_BYTES = 32 * 2**20  # what the latents of several steps of one chunk may occupy
STEP_BYTES = 2 * 2**20  # what the latents of a chunk of single steps may, where more rows are taken for it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@dataclass(frozen=True)
class BoundSum:
    """A `SequenceCost` and a `StepwiseCost`: the terms for B problems, each with its own latent and goal."""

    terms: Mapping[str, tuple[float, Term]]
    world_model: WorldModel
    latent: Float[Tensor, "B *latent"]
    goal: Float[Tensor, "B *goal"]
    chunk_rows: int | None = None

    def __call__(self, actions: Float[Tensor, "B S H A"]) -> Float[Tensor, "B S"]:
        """The weighted sum of all terms."""
        return torch.stack(list(self.breakdown(actions).values())).sum(dim=0)

    def breakdown(self, actions: Float[Tensor, "B S H A"]) -> dict[str, Float[Tensor, "B S"]]:
        """Each term's weighted share; the shares sum to the cost."""
        self._check(actions)
        keep_freed_memory()
        dtype = torch.promote_types(actions.dtype, torch.float32)
        shares = {name: actions.new_empty(actions.shape[:2], dtype=dtype) for name in self.terms}
        for problems, samples in self._chunks(actions[:, :, 0], self._path_rows(actions)):
            for name, total in self._totals(actions[problems, samples], problems).items():
                shares[name][problems, samples] = self.terms[name][0] * total
        for name, share in shares.items():
            _refuse_nan(name, share)
        return shares

    def expand(
        self,
        latents: Float[Tensor, "B N *latent"],
        actions: Float[Tensor, "B N A"],
        depth: Int[Tensor, "B N"] | int,
        horizon: int,
    ) -> Expansion:
        """Take action number `depth` (from 1) of paths of `horizon` steps from every node, in one call.

        Along a path of `horizon` steps, the sum of `step_cost` plus the last `to_go` is what calling this
        cost with the path's actions gives.
        """
        self._check(actions)
        additive = {name: _taken_by_steps(name, weight, term) for name, (weight, term) in self.terms.items()}
        keep_freed_memory()
        # A chunk is a run of rows. They are split and joined as wholes: the gradient of writing each into its
        # slice of one large tensor would copy that tensor once per chunk.
        if not actions.numel():
            none = actions.new_zeros(
                actions.shape[:2], dtype=torch.promote_types(actions.dtype, torch.float32)
            )
            return Expansion(latents.to(self.latent.dtype), none, none)
        chunks = list(self._chunks(actions, self._step_rows(actions)))
        sizes = [actions[chunk].shape[:2].numel() for chunk in chunks]
        parts = zip(
            chunks,
            torch.split(latents.flatten(0, 1), sizes),
            torch.split(actions.flatten(0, 1), sizes),
            [depth] * len(sizes) if isinstance(depth, int) else torch.split(depth.flatten(), sizes),
            strict=True,
        )
        answers = [
            self._one_step(additive, self.goal[problems, None], before, action, number, horizon)
            for (problems, _), before, action, number in parts
        ]
        reached, paid, to_go = (
            (rows[0] if len(rows) == 1 else torch.cat(rows)).unflatten(0, actions.shape[:2])
            for rows in zip(*answers, strict=True)
        )
        return Expansion(reached, paid, to_go)

    def _one_step(
        self,
        terms: Mapping[str, tuple[float, AdditiveTerm]],
        goal: Float[Tensor, "b 1 *goal"],
        before: Float[Tensor, "rows *latent"],
        action: Float[Tensor, "rows A"],
        depth: Int[Tensor, " rows"] | int,
        horizon: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where the rows of a chunk go, what it costs, and what is to go."""
        before = before.to(self.latent.dtype)
        after = self.world_model.step(before, action.to(before.dtype))
        grid = (len(goal), len(action) // len(goal))
        step = ImaginedStep(
            index=depth if isinstance(depth, int) else depth.unflatten(0, grid),
            horizon=horizon,
            before=_at_least_float32(before).unflatten(0, grid),
            action=action.unflatten(0, grid),
            latent=_at_least_float32(after).unflatten(0, grid),
            goal=_at_least_float32(goal),
        )
        dtype = torch.promote_types(action.dtype, torch.float32)
        paid, to_go = (action.new_zeros(grid, dtype=dtype) for _ in range(2))
        for name, (weight, term) in terms.items():
            for total, share in ((paid, term.step_cost(step)), (to_go, term.to_go(step))):
                if share is not None:
                    _refuse_nan(name, share)
                    total += weight * share
        return after, paid.flatten(), to_go.flatten()

    def _totals(self, actions: Float[Tensor, "b s H A"], problems: slice) -> dict[str, Tensor]:
        whole = {name: term for name, (_, term) in self.terms.items() if isinstance(term, PathTerm)}
        stepwise = {name: term for name, (_, term) in self.terms.items() if isinstance(term, StepwiseTerm)}
        goal = _at_least_float32(self.goal[problems, None])
        totals: dict[str, Tensor | None] = dict.fromkeys(self.terms)
        paths: Tensor | None = None
        if whole:
            paths = self.world_model.rollout(self.latent[problems], actions.to(self.latent.dtype))
            paths = _at_least_float32(paths)
            totals |= {name: term.over_path(Rollout(actions, paths), goal) for name, term in whole.items()}
        if stepwise:
            latents = self._imagine(actions, problems) if paths is None else iter(paths.unbind(dim=2))
            steps = _steps(latents, actions, goal)
            # wide latents, such as tokens, are looked at step by step, so that few are held
            rows = min(self._rows(actions), PATH_BYTES // (4 * self.latent[0].numel()))
            while group := list(itertools.islice(steps, max(1, rows // actions[:, :, 0, 0].numel()))):
                for name, term in stepwise.items():
                    totals[name] = _accumulated(term, totals[name], group)
        return {name: _counted(name, total) for name, total in totals.items()}

    def _imagine(
        self, actions: Float[Tensor, "b s H A"], problems: slice
    ) -> Iterator[Float[Tensor, "b s *latent"]]:
        grid = actions.shape[:2]
        # one contiguous block of actions per step, so that the predictor reads no strided memory
        by_step = actions.flatten(0, 1).transpose(0, 1).to(self.latent.dtype).contiguous()
        latent = self.latent[problems].repeat_interleave(grid[1], dim=0)
        yield _at_least_float32(latent).unflatten(0, grid)
        for action in by_step:
            latent = self.world_model.step(latent, action)
            yield _at_least_float32(latent).unflatten(0, grid)

    def _rows(self, actions: Tensor) -> int:
        return self.chunk_rows or default_chunk_rows(actions.device, self.latent.dtype)

    def _step_rows(self, actions: Tensor) -> int:
        # A step is a few dozen calls beside its products, which rows of narrow latents share. With gradients
        # all activations are kept, so they are no more than along paths.
        rows = self._rows(actions)
        if self.chunk_rows or torch.is_grad_enabled():
            return rows
        return min(4 * rows, max(rows, STEP_BYTES // (self.latent[0].numel() * self.latent.element_size())))

    def _path_rows(self, actions: Float[Tensor, "B S H A"]) -> int:
        rows = self._rows(actions)
        if any(isinstance(term, PathTerm) for _, term in self.terms.values()):
            rows = min(rows, max(1, PATH_BYTES // (4 * (actions.shape[2] + 1) * self.latent[0].numel())))
        return rows

    @staticmethod
    def _chunks(grid: Float[Tensor, "B S A"], rows: int) -> Iterator[tuple[slice, slice]]:
        problems, samples = grid.shape[:2]
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


def _steps(
    latents: Iterator[Float[Tensor, "b s *latent"]],
    actions: Float[Tensor, "b s H A"],
    goal: Float[Tensor, "b 1 *goal"],
) -> Iterator[ImaginedStep]:
    """What terms see of each step, from latents 0 to H."""
    by_step = actions.unbind(dim=2)
    for index, (before, latent) in enumerate(itertools.pairwise(latents), start=1):
        yield ImaginedStep(
            index=index,
            horizon=len(by_step),
            before=before,
            action=by_step[index - 1],
            latent=latent,
            goal=goal,
            previous_action=by_step[index - 2] if index > 1 else None,
        )


def _accumulated(term: StepwiseTerm, total: Tensor | None, steps: list[ImaginedStep]) -> Tensor | None:
    if isinstance(term, JointTerm):
        return term.accumulate_jointly(total, JointSteps(steps))
    for step in steps:
        total = term.accumulate(total, step)
    return total


def default_chunk_rows(device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """On a CPU few enough rows for each thread's cache and enough to hide what a call costs; else many.

    Of float32 2,048 rows a thread and 4,096 in all, of half the bytes twice as many. From 512 to 2,048 a
    replan gets 3 to 10 % faster, small networks in bfloat16 18 %, and then little more (docs/lab_notes.md).
    """
    if device.type != "cpu":
        return 65536
    return min(8192 * torch.get_num_threads(), 16384) // dtype.itemsize


@functools.cache
def keep_freed_memory() -> None:
    """Teach glibc, once per process, to keep what is freed, up to half a gigabyte, for the next step.

    It would first return every freed block above 128 KB to the kernel, and whatever is free at the end of its
    memory above as much, and each layer of each imagined step then waits for fresh pages: a fifth of a
    replan's time, and of a gradient's seven hundredths where blocks alone are kept (mallopt(3),
    M_MMAP_THRESHOLD and M_TRIM_THRESHOLD). Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
        library.mallopt(_M_TRIM_THRESHOLD, 512 * 2**20)


def _taken_by_steps(name: str, weight: float, term: Term) -> tuple[float, AdditiveTerm]:
    if not isinstance(term, AdditiveTerm):
        raise InputError(
            f"cost term '{name}' ({type(term).__name__}) looks at more of a path than one step, so it cannot "
            "be paid step by step: leave it out for tree search, beam and collocation, or plan with a "
            "planner that scores whole plans (MPPI, CEM, gradient)"
        )
    return weight, term


def _counted(name: str, total: Tensor | None) -> Tensor:
    if total is None:
        raise InputError(f"cost term '{name}' counted nothing; plans need a horizon of at least one step")
    return total


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


def _even_part(total: int, limit: int) -> int:
    # 2000 rows under a limit of 512 go as 4 x 500, not 3 x 512 + 464: equal parts, none of them tiny
    parts = -(-total // limit)
    return -(-total // parts)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
