"""A world that the library does not know: a body with inertia, felt and seen, and a wall with a gap."""

import torch

from jepaplan.data.walks import Walks
from jepaplan.types import Observation, Patch

SIZE, GAP = 16, 5.0


class Drift:
    """State (x, y, vx, vy, wall): an action pushes; half of the velocity is kept."""

    name = "Drift"
    episode_steps = 20
    image = (1, SIZE, SIZE)
    action_dim = 2
    state_width = 5

    def step(self, state, actions, generator=None):
        velocity = 0.5 * state[:, 2:4] + actions
        target = state[:, :2] + velocity
        crosses = (state[:, 0] < state[:, 4]) != (target[:, 0] < state[:, 4])
        blocked = crosses & ((state[:, 1] > GAP) | (target[:, 1] > GAP))
        blocked |= ((target < 1) | (target > SIZE - 2) | ~target.isfinite()).any(-1)
        place = torch.where(blocked[:, None], state[:, :2], target)
        return torch.cat([place, torch.where(blocked[:, None], 0.0, velocity), state[:, 4:]], dim=-1)

    def observe(self, state):
        frames = torch.zeros(len(state), 1, SIZE, SIZE, dtype=torch.uint8)
        column = torch.arange(SIZE)
        wall = (column == state[:, 4:].round())[:, None, :] & (column > GAP)[None, :, None]
        frames[:, 0] = wall * 100
        place = state[:, :2].round().long().clamp(0, SIZE - 1)
        frames[torch.arange(len(state)), 0, place[:, 1], place[:, 0]] = 255
        return Observation(frames, state[:, 2:4].clone())

    def reached(self, state, goal):
        """Reached within a pixel and a half."""
        return (state[:, :2] - goal[:, :2]).norm(dim=-1) < 1.5

    def cost_to_go(self, state, goal):
        corner = torch.stack([state[:, 4], torch.full_like(state[:, 4], GAP)], dim=-1)
        straight = (state[:, :2] - goal[:, :2]).norm(dim=-1)
        around = (state[:, :2] - corner).norm(dim=-1) + (corner - goal[:, :2]).norm(dim=-1)
        return torch.where(self.apart(state, goal), around, straight)

    def is_possible(self, state):
        place = state[:, :2]
        return state.isfinite().all(-1) & ((place >= 1) & (place <= SIZE - 2)).all(-1)

    def _anywhere(self, count, generator):
        return 2 + (SIZE - 5) * torch.rand(count, 2, generator=generator)

    def sample_tasks(self, count, generator):
        wall = torch.randint(6, 10, (count, 1), generator=generator).float()
        place = [self._anywhere(count, generator) for _ in range(2)]
        return tuple(torch.cat([each, torch.zeros(count, 2), wall], dim=-1) for each in place)

    def sample_states(self, like, generator):
        place = self._anywhere(len(like), generator)
        return torch.cat([place, torch.zeros(len(like), 2), like[:, 4:]], dim=-1)

    def apart(self, state, goal):
        """On two sides of the wall and not both above it."""
        sides = (state[:, 0] < state[:, 4]) != (goal[:, 0] < state[:, 4])
        return sides & ((state[:, 1] > GAP) | (goal[:, 1] > GAP))

    def typical_actions(self):
        return torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.7, 0.7], [-0.7, -0.7]])

    def positions(self, state):
        return state[..., :2]

    def scenery(self, state):
        wall = float(state[4])
        return (Patch("wall", (wall - 0.5, GAP), (wall + 0.5, SIZE - 1.0)),)


def drift(name):
    assert name == "Drift"
    return Drift()


def drift_walks(world, count, steps, generator):
    states, actions = [world.sample_tasks(count, generator)[0]], []
    for _ in range(steps):
        actions.append(torch.randn(count, 2, generator=generator))
        states.append(world.step(states[-1], actions[-1]))
    return Walks(torch.stack(states, dim=1), torch.stack(actions, dim=1))
