"""Planners of other libraries on a `Setting`: predictor, cost, samples, steps and iterations are ours.

    pytorch-mppi         MPPI
    torchrl              MPPI, CEM
    stable-worldmodel    MPPI, CEM, iCEM, predictive sampling, gradient descent
    mctx                 MuZero's tree search and its Gumbel variant, on JAX

All are optional: what is not installed raises `Missing`, and the tables say so. The matrix products of mctx
run in JAX, so its times are those of two compilers and two planners at once.
"""

import contextlib
import io
import os
import sys
import types
from collections.abc import Callable

import torch

from jepaplan.costs.terms import mean_square
from measuring import Work
from setting import ACTION_DIM, MAX_ACTION, Setting, Size

Peer = Callable[[Setting], Work]
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
TREE_ACTIONS = 16  # that mctx may choose from at every node


class Missing(Exception):
    """A contestant that cannot run here, and why."""


def pytorch_mppi(setting: Setting) -> Work:
    try:
        from pytorch_mppi import mppi
    except ImportError as error:
        raise Missing(f"not installed ({error})") from error
    size = setting.size
    goal = setting.goal.repeat_interleave(size.samples, dim=0)
    options = {
        "dynamics": setting.predictor,
        "running_cost": lambda latent, action: mean_square(latent, goal),
        "nx": size.latent,
        "noise_sigma": 12 * torch.eye(ACTION_DIM),
        "num_samples": size.samples,
        "horizon": size.horizon,
        "u_max": torch.full((ACTION_DIM,), MAX_ACTION),
    }
    if size.problems == 1:
        single = mppi.MPPI(**options)
        return lambda: single.command(setting.latent[0])
    batched = mppi.MPPI_Batched(**options, num_envs=size.problems)
    return lambda: batched.command(setting.latent)


class SummedReward(torch.nn.Module):
    """The cheapest advantage that torchrl's planner accepts: rewards to go, no value network."""

    def forward(self, tensordict: object) -> object:
        """Set the rewards to go."""
        reward = tensordict["next", "reward"]
        tensordict["advantage"] = reward.flip(-2).cumsum(-2).flip(-2)
        return tensordict


def _imagination(setting: Setting) -> tuple[object, object]:
    """Torchrl's environment that imagines, and where all problems start."""
    try:
        from tensordict import TensorDict
        from tensordict.nn import TensorDictModule
        from torchrl.data import Bounded, Composite, Unbounded
        from torchrl.envs.model_based import ModelBasedEnvBase
        from torchrl.modules import WorldModelWrapper
    except ImportError as error:
        raise Missing(f"not installed ({error})") from error
    size, goal = setting.size, setting.goal[:, None]

    class Imagination(ModelBasedEnvBase):
        def __init__(self, world_model: torch.nn.Module) -> None:
            super().__init__(world_model)
            self.state_spec = Composite(latent=Unbounded((size.latent,)))
            self.observation_spec = Composite(latent=Unbounded((size.latent,)))
            self.action_spec = Bounded(-MAX_ACTION, MAX_ACTION, (ACTION_DIM,))
            self.reward_spec = Unbounded((1,))

        def _reset(self, tensordict: object) -> object:
            return tensordict

    dynamics = TensorDictModule(setting.flat_step, in_keys=["latent", "action"], out_keys=["latent"])
    reward = TensorDictModule(
        lambda z: -mean_square(z, goal)[..., None], in_keys=["latent"], out_keys=["reward"]
    )
    blank = torch.zeros(size.problems, 1, dtype=torch.bool)
    start = TensorDict(
        {"latent": setting.latent, "done": blank, "terminated": blank.clone()}, batch_size=[size.problems]
    )
    return Imagination(WorldModelWrapper(dynamics, reward)), start


def torchrl_mppi(setting: Setting) -> Work:
    world, start = _imagination(setting)
    from torchrl.modules import MPPIPlanner

    size = setting.size
    planner = MPPIPlanner(
        world,
        SummedReward(),
        temperature=1e-3,
        planning_horizon=size.horizon,
        optim_steps=size.iterations,
        num_candidates=size.samples,
        top_k=size.elites or size.samples,
    )
    return lambda: planner(start.clone())


def torchrl_cem(setting: Setting) -> Work:
    world, start = _imagination(setting)
    from torchrl.modules import CEMPlanner

    size = setting.size
    planner = CEMPlanner(
        world,
        planning_horizon=size.horizon,
        optim_steps=size.iterations,
        num_candidates=size.samples,
        top_k=size.elites or size.samples,
    )
    return lambda: planner(start.clone())


class PlainLoop(torch.nn.Module):
    """The leanest model for stable-worldmodel's solvers: one loop, nothing kept."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting, self.predictor = setting, setting.predictor

    def get_cost(self, info: dict[str, torch.Tensor], actions: torch.Tensor) -> torch.Tensor:
        """Costs of all candidates."""
        latent, total = info["latent"], torch.zeros(actions.shape[:2])
        for action in actions.unbind(2):
            latent = self.setting.flat_step(latent, action)
            total = total + mean_square(latent, info["goal"])
        return total


def _swm() -> types.ModuleType:
    with contextlib.suppress(ImportError):
        # both look for torchvision when they are imported, and must not find the stub
        import torchrl.envs.model_based
        import torchrl.modules  # noqa: F401
    for name in ("torchvision", "torchvision.tv_tensors", "torchvision.io"):
        if name not in sys.modules:  # only its images need it, and it cannot load beside every torch
            stub = types.ModuleType(name)
            stub.__path__ = []
            stub.tv_tensors, stub.decode_jpeg, stub.ImageReadMode = None, None, None
            sys.modules[name] = stub
    try:
        import stable_worldmodel
        import stable_worldmodel.solver
    except Exception as error:  # its import reaches into data sets and environments: anything may be missing
        raise Missing(f"cannot be measured ({type(error).__name__}: {error})") from error
    return stable_worldmodel


def _configured(size: Size, solver: object) -> object:
    import gymnasium

    solver.configure(
        action_space=gymnasium.spaces.Box(-MAX_ACTION, MAX_ACTION, (size.problems, ACTION_DIM)),
        n_envs=size.problems,
        config=_swm().PlanConfig(horizon=size.horizon, receding_horizon=1),
    )
    return solver


def swm(name: str, **options: object) -> Peer:
    """The solver called `name` of stable-worldmodel, with one plain loop as its model."""

    def build(setting: Setting) -> Work:
        size = setting.size
        make = getattr(_swm().solver, name)
        solver = make(PlainLoop(setting), batch_size=size.problems, num_samples=size.samples, **options)
        _configured(size, solver)
        return lambda: _silently(solver, {"latent": setting.latent, "goal": setting.goal})

    return build


def swm_sampling(name: str) -> Peer:
    """The same for solvers that refit a distribution: their iterations and elites."""

    def build(setting: Setting) -> Work:
        size = setting.size
        return swm(name, n_steps=size.iterations, topk=size.elites or size.samples)(setting)

    return build


def swm_gradient(setting: Setting) -> Work:
    """Its optimiser is Adam, as ours."""
    options = {"optimizer_cls": torch.optim.Adam, "optimizer_kwargs": {"lr": 0.1}}
    work = swm("GradientSolver", n_steps=setting.size.iterations, **options)(setting)
    return torch.enable_grad()(work)  # whoever times it has switched gradients off


swm_with_a_plain_loop = swm_sampling("MPPISolver")


def swm_with_its_pldm(setting: Setting) -> Work:
    """Its own model class does the rollout, one problem at a time: its criterion takes no larger batch."""
    size, library = setting.size, _swm()
    from stable_worldmodel.wm.pldm.pldm import PLDM

    class HandThrough(torch.nn.Module):
        def forward(self, pixels: torch.Tensor, interpolate_pos_encoding: bool) -> object:
            return types.SimpleNamespace(last_hidden_state=pixels[:, None])

    class OneFrame(torch.nn.Module):
        num_frames = 1

        def forward(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            return setting.flat_step(latent, action)

    model = PLDM(HandThrough(), OneFrame(), torch.nn.Identity())
    solver = library.solver.MPPISolver(
        model, batch_size=1, num_samples=size.samples, n_steps=1, topk=size.samples
    )
    _configured(size, solver)
    info = {"pixels": setting.latent[:, None], "goal": setting.goal[:, None]}
    info["action"] = torch.zeros(size.problems, 1, ACTION_DIM)
    return lambda: _silently(solver, dict(info))


def _silently(solver: object, info: dict[str, torch.Tensor]) -> object:
    with contextlib.redirect_stdout(io.StringIO()):
        return solver.solve(info)


def mctx_tree(policy: str) -> Peer:
    """`muzero_policy` or `gumbel_muzero_policy`; `samples` are simulations, one leaf at a time."""

    def build(setting: Setting) -> Work:
        os.environ.setdefault("XLA_FLAGS", ONE_THREAD)
        try:
            import jax
            import mctx
        except ImportError as error:
            raise Missing(f"not installed ({error})") from error
        size = setting.size
        numbers, step = _predictor_in_jax(setting)
        search = getattr(mctx, policy)

        def expanded(numbers: dict[str, object], key: object, action: object, latent: object) -> object:
            after = step(numbers, latent, numbers["actions"][action])
            reward = -((after - numbers["goal"]) ** 2).mean(-1)
            output = mctx.RecurrentFnOutput(
                reward=reward,
                discount=jax.numpy.ones_like(reward),
                prior_logits=jax.numpy.zeros((len(reward), TREE_ACTIONS)),
                value=jax.numpy.zeros_like(reward),
            )
            return output, after

        @jax.jit
        def plan(numbers: dict[str, object], key: object) -> object:
            problems = size.problems
            root = mctx.RootFnOutput(
                prior_logits=jax.numpy.zeros((problems, TREE_ACTIONS)),
                value=jax.numpy.zeros(problems),
                embedding=numbers["latent"],
            )
            return search(numbers, key, root, expanded, size.samples, max_depth=size.horizon).action

        key = jax.random.PRNGKey(0)
        return lambda: plan(numbers, key).block_until_ready()

    return build


def _predictor_in_jax(setting: Setting) -> tuple[dict[str, object], Callable[..., object]]:
    """The predictor's weights, all that a search needs besides, and its step; checked against ours."""
    import jax.numpy as jnp
    from jax.nn import relu

    predictor = setting.predictor
    linears = [predictor.first, *predictor.hidden, predictor.last]
    numbers: dict[str, object] = {
        "weights": [jnp.asarray(linear.weight.T.numpy()) for linear in linears],
        "biases": [jnp.asarray(linear.bias.numpy()) for linear in linears],
        "latent": jnp.asarray(setting.latent.numpy()),
        "goal": jnp.asarray(setting.goal.numpy()),
        "actions": jnp.asarray(torch.randn(TREE_ACTIONS, ACTION_DIM).numpy()),
    }

    def step(numbers: dict[str, object], latent: object, action: object) -> object:
        hidden = jnp.concatenate([latent, action], axis=-1)
        pairs = list(zip(numbers["weights"], numbers["biases"], strict=True))
        for weight, bias in pairs[:-1]:
            hidden = hidden @ weight + bias
            centred = hidden - hidden.mean(-1, keepdims=True)
            hidden = relu(centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5))
        return hidden @ pairs[-1][0] + pairs[-1][1]

    action = torch.randn(len(setting.latent), ACTION_DIM)
    found = step(numbers, numbers["latent"], jnp.asarray(action.numpy()))
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(found.tolist()), predictor(setting.latent, action), rtol=1e-3, atol=1e-3
        )
    return numbers, step
