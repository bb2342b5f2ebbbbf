"""What planners share that go step by step: asking a stepwise cost, following paths, actions for nodes.

    literature                 here
    K actions of a node        NodeActions.draw(depth, count): sampled around the plan, or recorded chunks;
                               a search that takes few of them deals first, and draws what is taken
    prior pi(a | node)         the `logits` of those actions; equal where the prior itself dealt them
    Gumbel-top-k               recorded chunks are drawn without replacement in proportion to their weights,
                               by the shortest of as many waiting times: the same draw, no logarithms; where
                               all are alike, by the first exchanges of a shuffle

One edge of a search is a chunk of C actions: C = 1 for sampled actions, else the length of the recordings.
The last chunk of a path may reach beyond the horizon; what lies beyond is neither imagined into the path nor
paid for.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from jepaplan.interfaces import Bounds, SequenceCost, StepwiseCost
from jepaplan.planners.proposals import Randomness, deal, fill_normal, fill_uniform
from jepaplan.types import Expansion, InputError, Plan

AT_ONCE = 8 * 2**20  # bytes of latents; blocks above 32 MB go back to the kernel whenever they are freed
_AHEAD = 16  # times as much noise as is asked for


def at_once(nodes: Float[Tensor, "B N *latent"]) -> int:
    """How many nodes of each problem, at least one, have latents that stay in kept memory together."""
    return max(1, AT_ONCE // max(1, nodes[:, 0].numel() * nodes.element_size()))


def as_stepwise(cost: SequenceCost | StepwiseCost, planner: str) -> StepwiseCost:
    """The cost, if it can be asked one step at a time."""
    if isinstance(cost, StepwiseCost):
        return cost
    raise InputError(
        f"{planner} asks for costs one imagined step at a time, but a {type(cost).__name__} has no `latent` "
        "and `expand` (see interfaces.StepwiseCost). Bind a costs.compose.WeightedSum of stepwise terms, or "
        "use a planner over whole sequences such as CEM."
    )


def expand(
    cost: StepwiseCost,
    latents: Float[Tensor, "B N *latent"],
    actions: Float[Tensor, "B N A"],
    depth: Int[Tensor, "B N"] | int,
    horizon: int,
) -> Expansion:
    """One step from every node; what comes back has the right shape and no NaN."""
    answer = cost.expand(latents, actions, depth, horizon)
    for name, values in (("step_cost", answer.step_cost), ("to_go", answer.to_go)):
        if values.shape != actions.shape[:2]:
            raise InputError(
                f"the cost's {name} has shape {tuple(values.shape)} for actions of shape "
                f"{tuple(actions.shape)} (B N A); it must give one number per node"
            )
    if (answer.step_cost.isnan() | answer.to_go.isnan()).any():
        name, values = (
            ("step_cost", answer.step_cost) if answer.step_cost.isnan().any() else ("to_go", answer.to_go)
        )
        raise InputError(
            f"the cost's {name} is NaN for {int(values.isnan().sum())} of {values.numel()} nodes, and "
            "NaN cannot be ranked; look at the predicted latents, or return a large number where it "
            "is undefined"
        )
    return answer


@dataclass(frozen=True)
class Imagined:
    """Paths followed to their end."""

    latents: Float[Tensor, "B S H *latent"]  # after each action; where the paths start is not among them
    costs: Float[Tensor, "B S"]


def follow(cost: StepwiseCost, actions: Float[Tensor, "B S H A"]) -> Imagined:
    """Imagine whole paths step by step: as many calls as steps, all paths in each."""
    samples, horizon = actions.shape[1:3]
    latent = roots(cost, samples)
    total: Float[Tensor, "B S"] = actions.new_zeros(actions.shape[:2])
    latents: list[Tensor] = []
    to_go = total
    for depth in range(1, horizon + 1):
        step = expand(cost, latent, actions[:, :, depth - 1], depth, horizon)
        latent, total, to_go = step.latents, total + step.step_cost, step.to_go
        latents.append(latent)
    return Imagined(torch.stack(latents, dim=2), total + to_go)


def roots(cost: StepwiseCost, count: int) -> Float[Tensor, "B N *latent"]:
    """Where every path starts, `count` times per problem."""
    return cost.latent[:, None].expand(-1, count, *cost.latent.shape[1:])


def expand_chunk(
    cost: StepwiseCost,
    latents: Float[Tensor, "B N *latent"],
    chunk: Float[Tensor, "B N C A"],
    depth: Int[Tensor, "B N"],
    horizon: int,
) -> Expansion:
    """Take the C actions of one edge after `depth` earlier ones; `step_cost` is what all of them cost.

    No node may be at the horizon already: the first action always counts.
    """
    first = expand(cost, latents, chunk[:, :, 0], depth + 1, horizon)
    latents, total, to_go = first.latents, first.step_cost, first.to_go
    for index in range(1, chunk.shape[2]):
        number = depth + index + 1
        step = expand(cost, latents, chunk[:, :, index], number.clamp(max=horizon), horizon)
        # depths differ between nodes, so some paths may be over before the chunk is
        within = number <= horizon
        if within.all():
            latents, total, to_go = step.latents, total + step.step_cost, step.to_go
            continue
        total = torch.where(within, total + step.step_cost, total)
        to_go = torch.where(within, step.to_go, to_go)
        latents = torch.where(_beside(within, latents), step.latents, latents)
    return Expansion(latents, total, to_go)


def cheapest(candidates: Float[Tensor, "B S H A"], costs: Float[Tensor, "B S"]) -> Float[Tensor, "B H A"]:
    """Each problem's candidate of least cost."""
    return take(candidates, costs.argmin(dim=-1, keepdim=True))[:, 0]


def take(values: Shaped[Tensor, "B N *rest"], index: Int[Tensor, "B M"]) -> Shaped[Tensor, "B M *rest"]:
    """`values[b, index[b, m]]` for every problem b; an index from 0 below N, or it is a neighbour's."""
    first = torch.arange(len(values), device=values.device)[:, None] * values.shape[1]
    # rows of one flat tensor: several times faster than two indices at once
    return values.flatten(0, 1).index_select(0, (first + index).flatten()).unflatten(0, index.shape)


def refuse_dead_ends(costs: Float[Tensor, "B S"]) -> None:
    """Refuse to choose among paths that all cost infinity."""
    if costs.amin(dim=-1).isinf().any():
        raise InputError(
            "every path of some problem costs infinity, so there is nothing to choose from. Use a large "
            "finite number for what must not happen, or more and wider actions."
        )


@dataclass(frozen=True)
class NodeActions:
    """Where the actions of a search's nodes come from."""

    start: Plan
    generator: Randomness
    bounds: Bounds | None
    bank: Float[Tensor, "n C A"] | None = None  # recorded chunks; None: sample around the plan
    weights: Float[Tensor, " n"] | None = None  # of the recorded chunks; None: all alike
    keep_nominal: bool = True  # what the plan would do is the first action of every node

    @property
    def length(self) -> int:
        """C, model steps of one edge."""
        return 1 if self.bank is None else self.bank.shape[1]

    def available(self, count: int) -> int:
        """How many edges a node can have when `count` are wanted: a bank may hold fewer."""
        return edges_available(count, self.bank, self.keep_nominal)

    def draw(
        self, depth: Int[Tensor, "B N"], count: int
    ) -> tuple[Float[Tensor, "B N K C A"], Float[Tensor, "B N K"]]:
        """`count` allowed edges for nodes at `depth`, and the logits of their prior."""
        nominal = self._nominal(depth)[:, :, None]
        others = count - self.keep_nominal
        if self.bank is None:
            chunks = self._sampled(nominal.expand(-1, -1, others, -1, -1), depth)
            logits = chunks.new_zeros(*depth.shape, count)
        else:
            hand = self.deal(depth, count)
            chunks, logits = self._recorded(hand.numbers[:, :, count - others :]), hand.logits
        if self.keep_nominal:
            chunks = torch.cat([nominal, chunks], dim=2)
        return (chunks if self.bounds is None else self.bounds.project(chunks)), logits

    def deal(self, depth: Int[Tensor, "B N"], count: int) -> "Hand":
        """Which recorded chunks the `count` edges of nodes at `depth` are, and the logits of their prior."""
        assert self.bank is not None
        others = count - self.keep_nominal
        order, logits = self._dealt(depth, others)
        if self.keep_nominal:
            order = torch.cat([order.new_zeros(*depth.shape, 1), order], dim=2)
            # the plan's own actions are not recorded ones: as likely as the likeliest of them
            known = logits.amax(dim=-1, keepdim=True) if others else logits.new_zeros(*depth.shape, 1)
            logits = torch.cat([known, logits], dim=2)
        return Hand(order, logits)

    def taken(
        self, depth: Int[Tensor, "B N"], slots: Int[Tensor, "B N"], numbers: Int[Tensor, "B N"] | None
    ) -> Float[Tensor, "B N C A"]:
        """Allowed chunks for edges number `slots` of nodes at `depth`; of a bank, those that were dealt.

        What nobody recorded is sampled only now, so each edge may be taken once.
        """
        if numbers is None:
            mean, std = take(self._plan, depth.clamp(max=self._plan.shape[1] - 1)).chunk(2, dim=-1)
            noise = self._noise(depth.shape[1])
            if self.keep_nominal:
                noise = noise * (slots > 0)[:, :, None]
            chunks = torch.addcmul(mean, std, noise)[:, :, None]
        else:
            chunks = self._recorded(numbers)
            if self.keep_nominal:
                chunks = torch.where((slots == 0)[:, :, None, None], self._nominal(depth), chunks)
        return chunks if self.bounds is None else self.bounds.project(chunks)

    def _noise(self, count: int) -> Float[Tensor, "B N A"]:
        """Normal numbers that nobody had, drawn ahead: to ask a generator takes longer than a few numbers."""
        spare = self._spare[0]
        if spare.shape[1] < count:
            fresh = spare.new_empty(len(spare), _AHEAD * count, spare.shape[2])
            spare = torch.cat([spare, deal(fresh, self.generator, fill_normal)], dim=1)
        self._spare[0] = spare[:, count:]
        return spare[:, :count]

    @cached_property
    def _spare(self) -> list[Float[Tensor, "B n A"]]:
        """As much a state as the generator's own: what was drawn and has not been used."""
        return [self.start.mean[:, :0]]

    @cached_property
    def _plan(self) -> Float[Tensor, "B H AA"]:
        """Its mean and deviation, side by side."""
        return torch.cat([self.start.mean, self.start.std], dim=-1)

    def _nominal(self, depth: Int[Tensor, "B N"]) -> Float[Tensor, "B N C A"]:
        ahead = torch.arange(self.length, device=depth.device)
        steps = (depth[:, :, None] + ahead).clamp(max=self.start.mean.shape[1] - 1)
        return take(self.start.mean, steps.flatten(1)).unflatten(1, steps.shape[1:])

    def _sampled(
        self, nominal: Float[Tensor, "B N K 1 A"], depth: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B N K 1 A"]:
        noise = standard_normal(nominal, self.generator)
        std = take(self.start.std, depth.clamp(max=self.start.std.shape[1] - 1))
        return nominal + std[:, :, None, None] * noise

    def _recorded(self, numbers: Int[Tensor, "B *N"]) -> Float[Tensor, "B *N C A"]:
        assert self.bank is not None
        bank = self.bank.to(self.start.mean)
        return bank.index_select(0, numbers.flatten()).unflatten(0, numbers.shape)

    def _dealt(
        self, depth: Int[Tensor, "B N"], count: int
    ) -> tuple[Int[Tensor, "B N K"], Float[Tensor, "B N K"]]:
        assert self.bank is not None
        bank = self.bank.to(self.start.mean)
        logits = bank.new_zeros(len(bank)) if self.weights is None else self.weights.to(bank).log()
        everywhere = logits.expand(*depth.shape, -1)
        if count == len(bank):
            order = torch.arange(count, device=bank.device).expand(*depth.shape, -1)
            return order, everywhere.clone()
        if self.weights is None:
            random = deal(bank.new_empty(*depth.shape, count), self.generator, fill_uniform)
            order = distinct(random, len(bank))
        else:
            # clocks that ring at these rates: the first to ring are draws without replacement
            waiting = deal(torch.empty_like(everywhere), self.generator, _fill_exponential)
            order = (waiting / self.weights.to(bank)).topk(count, dim=-1, largest=False).indices
        # the weights have had their say in the draw
        return order, bank.new_zeros(order.shape)


def distinct(random: Float[Tensor, "*rows K"], count: int) -> Int[Tensor, "*rows K"]:
    """K different numbers below `count`, every choice and order alike; `random` is even over [0, 1)."""
    # numba takes 0.3 s to import, and who searches without recorded chunks has no use for it
    from jepaplan.planners.tree_loops import draw_distinct

    order = torch.empty(random.shape, dtype=torch.long)
    # wider only: what rounds to one would draw what is not there
    known = random.to("cpu", torch.promote_types(random.dtype, torch.float32))
    draw_distinct(known.flatten(0, -2).numpy(), count, order.flatten(0, -2).numpy())
    return order.to(random.device)


def edges_available(count: int, bank: Float[Tensor, "n C A"] | None, keep_nominal: bool) -> int:
    """How many edges a node can have when `count` are wanted: all that a bank holds, and the plan's own."""
    return count if bank is None else min(count, len(bank) + keep_nominal)


@dataclass(frozen=True)
class Hand:
    """What a bank deals to nodes with K edges each."""

    numbers: Int[Tensor, "B N K"]  # of the bank's chunks; that of the plan's own actions counts for nothing
    logits: Float[Tensor, "B N K"]


def check_bank(bank: Float[Tensor, "n C A"] | None, weights: Float[Tensor, " n"] | None) -> None:
    """Refuse banks that hold nothing and weights that are not those of a bank."""
    if bank is not None and (bank.ndim != 3 or 0 in bank.shape or not bank.isfinite().all()):
        raise InputError(
            f"bank must hold finite recorded chunks, `n C A`: n chunks of C actions; got {tuple(bank.shape)}"
        )
    if weights is None:
        return
    if bank is None or weights.shape != bank.shape[:1] or not (weights > 0).all():
        raise InputError(
            f"weights are positive, one for each chunk of the bank; got {tuple(weights.shape)} for "
            f"{'no bank' if bank is None else f'{len(bank)} chunks'}"
        )


def standard_normal(like: Float[Tensor, "B *shape"], generator: Randomness) -> Float[Tensor, "B *shape"]:
    """Normal noise, as much of it for each problem as in `like`."""
    return deal(torch.empty_like(like), generator, fill_normal)


def gumbel(like: Float[Tensor, "B *shape"], generator: Randomness) -> Float[Tensor, "B *shape"]:
    """Standard Gumbel noise like `like`; the k largest of logits + noise are k draws without replacement."""
    return -deal(torch.empty_like(like), generator, _fill_exponential).log()


def _fill_exponential(numbers: Tensor, generator: torch.Generator) -> None:
    numbers.exponential_(generator=generator)


def _beside(mask: Bool[Tensor, "B N"], values: Float[Tensor, "B N *latent"]) -> Bool[Tensor, "B N *ones"]:
    return mask.view(*mask.shape, *(1,) * (values.ndim - mask.ndim))
