"""jepaplan: train JEPA world models on offline trajectories, shape latents with values, plan actions in them.

Nothing heavy is imported here: `jepaplan --version` must not wait for torch.
"""

__version__ = "0.1.0"
