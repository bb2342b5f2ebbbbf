"""Returns as the book defines them, for the tests of what computes them faster."""

import torch


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def lambda_return_literally(rewards, terminal, following, gamma, lam):
    """The weighted mean of all n-step returns, Sutton and Barto (2018), equation 12.3, with ends."""
    steps = len(rewards)
    found = []
    for t in range(steps):
        n_step = []
        for n in range(1, steps - t + 1):
            total, weight = 0.0, 1.0
            for k in range(t, t + n):
                total += weight * rewards[k]
                weight *= 0.0 if terminal[k] else gamma
            n_step.append(total + weight * following[t + n - 1])
        mixed = sum((1 - lam) * lam**n * value for n, value in enumerate(n_step[:-1]))
        found.append(mixed + lam ** (len(n_step) - 1) * n_step[-1])
    return found


def segments(seed, items=3, steps=5):
    generator = seeded(seed)
    rewards = torch.randn(items, steps, generator=generator, dtype=torch.float64)
    terminal = torch.rand(items, steps, generator=generator) < 0.2
    following = torch.randn(items, steps, 2, generator=generator, dtype=torch.float64)
    return rewards, terminal, following
