"""Smooth little worlds, of which every latent can be computed by hand."""

import torch


class Units:
    """Environment units are the normalised ones."""

    def normalise(self, actions: torch.Tensor) -> torch.Tensor:
        return actions

    def inverse(self, actions: torch.Tensor) -> torch.Tensor:
        return actions


class Bending:
    """A smooth nonlinear world whose latents differ from sample to sample; they may be tokens or members."""

    action_dim = 2
    stride = 1
    action_units = Units()

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        self.shape = shape or (6,)
        generator = torch.Generator().manual_seed(0)
        rows, width = self.shape[:-1], self.shape[-1]
        turn = torch.randn(*rows, width, width, generator=generator, dtype=torch.float64) / width**0.5
        push = torch.randn(*rows, 2, width, generator=generator, dtype=torch.float64)
        self.turn, self.push = turn.to(dtype), push.to(dtype)
        self.rows: list[int] = []

    def encode(self, observation: torch.Tensor, proprioception: torch.Tensor | None = None) -> torch.Tensor:
        return observation

    def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(latent))
        if len(self.shape) == 1:
            return torch.tanh(latent @ self.turn + action @ self.push)
        turned = torch.einsum("bnd,nde->bne", latent, self.turn)
        return torch.tanh(turned + torch.einsum("ba,nae->bne", action, self.push))

    def rollout(self, latent: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        problems, samples = actions.shape[:2]
        path = [latent.repeat_interleave(samples, 0)]
        for action in actions.flatten(0, 1).unbind(1):
            path.append(self.step(path[-1], action))
        return torch.stack(path, dim=1).unflatten(0, (problems, samples))


class LongestStride:
    """A term that needs the whole path, the observed latent included."""

    def over_path(self, rollout: object, goal: torch.Tensor) -> torch.Tensor:
        return rollout.latents.diff(dim=2).norm(dim=-1).amax(dim=-1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def euclidean(source: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(source - goal, dim=-1)


def problem(
    seed: int, problems: int, samples: int, horizon: int, shape: tuple[int, ...] = (6,)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, goals and actions in float64."""
    generator = seeded(seed)
    latent, goal = (torch.randn(problems, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return latent, goal, torch.randn(problems, samples, horizon, 2, generator=generator, dtype=torch.float64)
