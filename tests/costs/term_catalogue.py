"""Every term with its definition written out slowly: one path, step by step, number by number."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from toy_worlds import euclidean

from jepaplan.costs.distances import ReachabilityGate, TokenMean, cosine, mean_absolute, mean_square
from jepaplan.costs.ensemble import LatentDisagreement, ValueDisagreement
from jepaplan.costs.obstacles import ActionBounds, CollisionProbability, ObstacleClearance, StateBounds
from jepaplan.costs.probes import BallDistance, BoxDistance, StateDistance
from jepaplan.costs.regions import Ball, Box
from jepaplan.costs.steps import Term
from jepaplan.costs.terms import ActionEffort, ActionSmoothness, GoalDistance
from jepaplan.costs.value import (
    ActionWithoutGoal,
    MinusReward,
    NotYetThere,
    NStepCost,
    RemainingActionCost,
    RemainingCost,
    WithoutGoal,
)

Path = list[torch.Tensor]  # z_0 .. z_H, or a_1 .. a_H


@dataclass(frozen=True)
class Entry:
    term: Term
    literal: Callable[[Path, Path, torch.Tensor], float]  # latents, actions, goal row
    goal: Callable[[torch.Tensor], torch.Tensor] = lambda goal: goal  # from a goal latent to the row
    shape: tuple[int, ...] = (6,)
    additive: bool = True


def numbers(vector: torch.Tensor) -> list[float]:
    return vector.flatten().tolist()


def apart(z: torch.Tensor, g: torch.Tensor) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(numbers(z), numbers(g), strict=True)))


def squares(z: torch.Tensor, g: torch.Tensor) -> float:
    return sum((a - b) ** 2 for a, b in zip(numbers(z), numbers(g), strict=True)) / z.numel()


def absolutes(z: torch.Tensor, g: torch.Tensor) -> float:
    return sum(abs(a - b) for a, b in zip(numbers(z), numbers(g), strict=True)) / z.numel()


def angle(z: torch.Tensor, g: torch.Tensor) -> float:
    dot = sum(a * b for a, b in zip(numbers(z), numbers(g), strict=True))
    return 1 - dot / (apart(z, torch.zeros_like(z)) * apart(g, torch.zeros_like(g)))


def value(latent: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return -(latent - goal).square().sum(dim=-1)


def state_value(latent: torch.Tensor) -> torch.Tensor:
    return 3 - latent.sum(dim=-1).square()


def action_value(latent: torch.Tensor, goal: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return action[..., 0] * latent[..., 1] - (latent - goal).square().sum(dim=-1)


def state_action_value(latent: torch.Tensor, *, action: torch.Tensor) -> torch.Tensor:
    return latent[..., 2] * action[..., 1].square()


def of_action(z: torch.Tensor, a: torch.Tensor, g: torch.Tensor) -> float:
    return 6 * squares(z, g) - float(a[0] * z[1])


def members(latent: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return torch.stack([-scale * (latent - goal).square()[..., part] for part, scale in SCALES], dim=-1)


SCALES = ((0, 1.0), (2, 0.5), (5, 2.0))


def member_deviation(z: torch.Tensor, g: torch.Tensor) -> float:
    values = [-scale * float(z[part] - g[part]) ** 2 for part, scale in SCALES]
    mean = sum(values) / 3
    return math.sqrt(sum((v - mean) ** 2 for v in values) / 3)


def member_variance(z: torch.Tensor) -> float:
    total = 0.0
    for column in z.T.tolist():
        mean = sum(column) / len(column)
        total += sum((x - mean) ** 2 for x in column) / len(column)
    return total / z.shape[1]


def reward(latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return latent[..., 0] * action[..., 1] - action[..., 0]


def probe(latent: torch.Tensor) -> torch.Tensor:
    return 2 * latent[..., :2] + latent[..., 2:4] ** 2


def probed(z: torch.Tensor) -> tuple[float, float]:
    return 2 * float(z[0]) + float(z[2]) ** 2, 2 * float(z[1]) + float(z[3]) ** 2


def clearance(latent: torch.Tensor) -> torch.Tensor:
    return latent[..., 0] - latent[..., 1]


def probability(latent: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(latent[..., :1])


def reachability(latent: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(latent - goal).square().mean(dim=-1))


def out_of_box(point: tuple[float, ...], low: list[float], high: list[float]) -> float:
    return math.sqrt(sum(max(a - x, x - b, 0.0) ** 2 for x, a, b in zip(point, low, high, strict=True)))


def out_of_ball(point: tuple[float, ...], centre: list[float], radius: float) -> float:
    return max(0.0, math.sqrt(sum((x - c) ** 2 for x, c in zip(point, centre, strict=True))) - radius)


def gated(z: torch.Tensor, g: torch.Tensor) -> float:
    return apart(z, g) * max(0.2, 1 - 0.9 * math.exp(-squares(z, g)))


def n_step(z: Path, a: Path, g: torch.Tensor) -> float:
    """1 per step that begins away from the goal, and the value at the end, all discounted."""
    paid = sum(0.9**k for k in range(len(a)) if apart(z[k], g) > 2.5)
    return paid + 0.9 ** len(a) * 6 * squares(z[-1], g)


def n_step_reward(z: Path, a: Path, g: torch.Tensor) -> float:
    rewards = [float(z[k][0] * a[k][1] - a[k][0]) for k in range(len(a))]
    return -(sum(0.8**k * r for k, r in enumerate(rewards)) - 0.8 ** len(a) * apart(z[-1], g))


def n_step_of_actions(z: Path, a: Path, g: torch.Tensor) -> float:
    """The running cost of all steps but the last, whose action the value knows."""
    paid = sum(0.8**k * float(a[k][0] - z[k][0] * a[k][1]) for k in range(len(a) - 1))
    return paid + 0.8 ** (len(a) - 1) * of_action(z[len(a) - 1], a[-1], g)


REMAINING = RemainingCost(value)
OF_ACTION = RemainingActionCost(action_value)

CATALOGUE: dict[str, Entry] = {
    "sum": Entry(GoalDistance(distance=mean_square), lambda z, a, g: sum(squares(x, g) for x in z[1:])),
    "terminal": Entry(GoalDistance(distance=euclidean, over="terminal"), lambda z, a, g: apart(z[-1], g)),
    "minimum": Entry(
        GoalDistance(distance=euclidean, over="minimum"),
        lambda z, a, g: min(apart(x, g) for x in z[1:]),
        additive=False,
    ),
    "discounted": Entry(
        GoalDistance(distance=euclidean, over="discounted", discount=0.9),
        lambda z, a, g: sum(0.9**k * apart(x, g) for k, x in enumerate(z) if k > 0),
    ),
    "last 2": Entry(
        GoalDistance(distance=euclidean, over="last", last=2),
        lambda z, a, g: sum(apart(x, g) for x in z[1:][-2:]) / len(z[1:][-2:]),
    ),
    "L1": Entry(GoalDistance(distance=mean_absolute, over="terminal"), lambda z, a, g: absolutes(z[-1], g)),
    "cosine": Entry(GoalDistance(distance=cosine), lambda z, a, g: sum(angle(x, g) for x in z[1:])),
    "tokens": Entry(
        GoalDistance(distance=TokenMean(mean_absolute)),
        lambda z, a, g: sum(absolutes(x, g) for x in z[1:]),
        shape=(3, 4),
    ),
    "gate": Entry(
        GoalDistance(
            distance=ReachabilityGate(distance=euclidean, reachability=reachability, strength=0.9, least=0.2),
            over="terminal",
        ),
        lambda z, a, g: gated(z[-1], g),
    ),
    "terminal value": Entry(
        GoalDistance(distance=REMAINING, over="terminal"), lambda z, a, g: 6 * squares(z[-1], g)
    ),
    "discounted values": Entry(
        GoalDistance(distance=REMAINING, over="discounted", discount=0.7),
        lambda z, a, g: sum(0.7**k * 6 * squares(x, g) for k, x in enumerate(z) if k > 0),
    ),
    "state value": Entry(
        GoalDistance(distance=RemainingCost(WithoutGoal(state_value)), over="terminal"),
        lambda z, a, g: sum(numbers(z[-1])) ** 2 - 3,
    ),
    "n-step, threshold": Entry(
        NStepCost(running=NotYetThere(distance=euclidean, threshold=2.5), remaining=REMAINING, discount=0.9),
        n_step,
    ),
    "n-step, soft threshold": Entry(
        NStepCost(running=NotYetThere(distance=euclidean, threshold=2.5, softness=0.3), remaining=euclidean),
        lambda z, a, g: sum(1 / (1 + math.exp(-(apart(x, g) - 2.5) / 0.3)) for x in z[:-1]) + apart(z[-1], g),
    ),
    "n-step, reward": Entry(
        NStepCost(running=MinusReward(reward), remaining=euclidean, discount=0.8), n_step_reward
    ),
    "n-step, action value": Entry(
        NStepCost(running=MinusReward(reward), remaining=OF_ACTION, discount=0.8), n_step_of_actions
    ),
    "terminal action value": Entry(
        GoalDistance(distance=OF_ACTION, over="terminal"), lambda z, a, g: of_action(z[-2], a[-1], g)
    ),
    "sum of action values": Entry(
        GoalDistance(distance=OF_ACTION),
        lambda z, a, g: sum(of_action(z[k], a[k], g) for k in range(len(a))),
    ),
    "discounted action values": Entry(
        GoalDistance(distance=OF_ACTION, over="discounted", discount=0.9),
        lambda z, a, g: sum(0.9 ** (k + 1) * of_action(z[k], a[k], g) for k in range(len(a))),
    ),
    "least action value": Entry(
        GoalDistance(distance=OF_ACTION, over="minimum"),
        lambda z, a, g: min(of_action(z[k], a[k], g) for k in range(len(a))),
        additive=False,
    ),
    "action value without goal": Entry(
        GoalDistance(distance=RemainingActionCost(ActionWithoutGoal(state_action_value)), over="terminal"),
        lambda z, a, g: -float(z[-2][2] * a[-1][1] ** 2),
    ),
    "effort": Entry(ActionEffort(), lambda z, a, g: sum(x**2 for step in a for x in numbers(step))),
    "smoothness": Entry(
        ActionSmoothness(),
        lambda z, a, g: sum(2 * squares(a[k], a[k - 1]) for k in range(1, len(a))),
        additive=False,
    ),
    "latent bounds": Entry(
        StateBounds(region=Ball((0.0,) * 6, 0.8)),
        lambda z, a, g: sum(out_of_ball(tuple(numbers(x)), [0.0] * 6, 0.8) ** 2 for x in z[1:]),
    ),
    "probed bounds": Entry(
        StateBounds(region=Box((-0.5, -1.0), (0.5, math.inf)), probe=probe),
        lambda z, a, g: sum(out_of_box(probed(x), [-0.5, -1.0], [0.5, math.inf]) ** 2 for x in z[1:]),
    ),
    "action bounds": Entry(
        ActionBounds(region=Box((-0.5, -0.1), (0.2, 0.3))),
        lambda z, a, g: sum(out_of_box(tuple(numbers(x)), [-0.5, -0.1], [0.2, 0.3]) ** 2 for x in a),
    ),
    "clearance": Entry(
        ObstacleClearance(clearance=clearance, margin=0.3),
        lambda z, a, g: sum(max(0.0, 0.3 - float(x[0] - x[1])) ** 2 for x in z[1:]),
    ),
    "collision": Entry(
        CollisionProbability(probability=probability),
        lambda z, a, g: sum(1 / (1 + math.exp(-float(x[0]))) for x in z[1:]),
    ),
    "value disagreement": Entry(
        ValueDisagreement(members=members, discount=0.9),
        lambda z, a, g: sum(0.9**k * member_deviation(x, g) for k, x in enumerate(z) if k > 0),
    ),
    "disagreement": Entry(
        LatentDisagreement(),
        lambda z, a, g: sum(0.95**k * member_variance(x) for k, x in enumerate(z) if k > 0),
        shape=(3, 4),
    ),
    "state": Entry(
        GoalDistance(distance=StateDistance(probe)),
        lambda z, a, g: sum(apart(torch.tensor(probed(x)), g) for x in z[1:]),
        goal=lambda goal: goal[:, :2],
    ),
    "box": Entry(
        GoalDistance(distance=BoxDistance(probe), over="terminal"),
        lambda z, a, g: out_of_box(probed(z[-1]), numbers(g[:2]), numbers(g[2:])),
        goal=lambda goal: torch.cat([goal[:, :2], goal[:, :2] + goal[:, 2:4].abs()], dim=-1),
    ),
    "ball": Entry(
        GoalDistance(distance=BallDistance(probe), over="discounted", discount=0.5),
        lambda z, a, g: sum(
            0.5**k * out_of_ball(probed(x), numbers(g[:2]), float(g[2])) for k, x in enumerate(z) if k > 0
        ),
        goal=lambda goal: goal[:, :3].abs(),
    ),
}
