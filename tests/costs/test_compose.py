"""Streaming in chunks equals the whole path at once; the shares sum to the cost; what is wrong is named."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_worlds import Bending, LongestStride, euclidean, problem

from jepaplan.costs import streaming
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import ActionEffort, GoalDistance, ImaginedStep, mean_square
from jepaplan.types import InputError

STEPWISE = {
    "goal": (2.0, GoalDistance(distance=mean_square)),
    "end": (0.5, GoalDistance(distance=euclidean, over="terminal")),
    "touch": (1.5, GoalDistance(distance=euclidean, over="minimum")),
    "effort": (0.1, ActionEffort()),
}


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    problems=st.integers(1, 4),
    samples=st.integers(1, 9),
    horizon=st.integers(1, 5),
    rows=st.integers(1, 40),
)
def test_streaming_equals_the_whole_path_whatever_the_chunk(
    seed: int, problems: int, samples: int, horizon: int, rows: int
):
    latent, goal, actions = problem(seed, problems, samples, horizon)
    world = Bending()
    paths = world.rollout(latent, actions)[:, :, 1:]
    distances = (paths - goal[:, None, None]).norm(dim=-1)
    expected = {
        "goal": 2.0 * (distances.square() / 6).sum(dim=-1),
        "end": 0.5 * distances[:, :, -1],
        "touch": 1.5 * distances.amin(dim=-1),
        "effort": 0.1 * actions.square().sum(dim=(-2, -1)),
    }
    for terms in (STEPWISE, {**STEPWISE, "stride": (0.0, LongestStride())}):
        bound = WeightedSum(terms, chunk_rows=rows).bind(world, latent, goal)
        shares = bound.breakdown(actions)
        for name, numbers in expected.items():
            torch.testing.assert_close(shares[name], numbers)
        torch.testing.assert_close(bound(actions), sum(expected.values()))


def test_no_more_rows_than_asked_are_imagined_at_once():
    latent, goal, actions = problem(0, 3, 10, 2)
    world = Bending()
    WeightedSum(STEPWISE, chunk_rows=4).bind(world, latent, goal)(actions)
    assert max(world.rows) <= 4
    assert sum(world.rows) == 3 * 10 * 2
    world.rows.clear()
    WeightedSum(STEPWISE, chunk_rows=20).bind(world, latent, goal)(actions)
    assert world.rows == [20, 20, 10, 10]


def test_whole_paths_come_from_the_world_models_own_rollout_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
):
    latent, goal, actions = problem(1, 2, 8, 3)
    world = Bending()
    bound = WeightedSum({"stride": (3.0, LongestStride())}).bind(world, latent, goal)
    whole = bound(actions)
    torch.testing.assert_close(
        whole, 3 * world.rollout(latent, actions).diff(dim=2).norm(dim=-1).amax(dim=-1)
    )
    monkeypatch.setattr(streaming, "PATH_BYTES", 5 * 4 * (3 + 1) * 6)
    world.rows.clear()
    torch.testing.assert_close(bound(actions), whole)
    assert max(world.rows) <= 5


def test_each_problem_has_its_own_start_and_goal():
    latent, goal, actions = problem(2, 4, 5, 3)
    cost = WeightedSum(STEPWISE)
    together = cost.bind(Bending(), latent, goal)(actions)
    for b in range(4):
        alone = cost.bind(Bending(), latent[b : b + 1], goal[b : b + 1])(actions[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone)


def test_bfloat16_imagination_accumulates_in_float32():
    latent, goal, actions = problem(4, 2, 50, 96)
    exact = WeightedSum(STEPWISE).bind(Bending(), latent, goal)(actions)
    half = Bending(dtype=torch.bfloat16)
    found = WeightedSum(STEPWISE, dtype=torch.bfloat16).bind(half, latent.float(), goal.float())(
        actions.float()
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.float(), rtol=0.05, atol=0.0)


def test_nan_is_refused_with_the_name_of_its_term():
    latent, goal, actions = problem(5, 3, 4, 2)
    goal[1] = torch.nan
    cost = WeightedSum({"effort": (1.0, ActionEffort()), "goal": (1.0, GoalDistance(distance=euclidean))})
    with pytest.raises(InputError, match="'goal' is NaN for 4 of 4 samples of problem 1"):
        cost.bind(Bending(), latent, goal)(actions)


def test_mismatched_problems_and_actions_are_refused():
    latent, goal, actions = problem(6, 3, 4, 2)
    bound = WeightedSum(STEPWISE).bind(Bending(), latent, goal)
    with pytest.raises(InputError, match="actions are for 2 problems"):
        bound(actions[:2])
    with pytest.raises(InputError, match="actions have 1 components"):
        bound(actions[..., :1])


def test_a_term_that_counts_nothing_or_is_none_is_refused():
    class Silent:
        def accumulate(self, total: torch.Tensor | None, step: ImaginedStep) -> None:
            return None

    latent, goal, actions = problem(7, 1, 2, 2)
    with pytest.raises(InputError, match="'nothing' counted nothing"):
        WeightedSum({"nothing": (1.0, Silent())}).bind(Bending(), latent, goal)(actions)
    with pytest.raises(InputError, match="at least one term"):
        WeightedSum({})


def test_a_start_that_is_no_number_is_refused_before_anything_is_imagined():
    latent, goal, _ = problem(5, 3, 4, 2)
    latent[2, 0] = torch.nan
    with pytest.raises(InputError, match="problem 2 starts from holds NaN"):
        WeightedSum(STEPWISE).bind(Bending(), latent, goal)


def test_a_step_of_no_problems_and_of_no_nodes_is_empty():
    latent, goal, actions = problem(0, 2, 3, 4)
    bound = WeightedSum({"goal": (1.0, GoalDistance(distance=mean_square))}).bind(Bending(), latent, goal)
    found = bound.expand(latent[:, None][:, :0], actions[:, :0, 0], 1, 4)
    assert (found.latents.shape, found.step_cost.shape) == ((2, 0, latent.shape[1]), (2, 0))
    nobody = WeightedSum({"goal": (1.0, GoalDistance(distance=mean_square))}).bind(
        Bending(), latent[:0], goal[:0]
    )
    assert nobody.expand(latent[:0, None], actions[:0, :1, 0], 1, 4).to_go.shape == (0, 1)


def test_chunks_of_half_the_bytes_hold_twice_the_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    processor = torch.device("cpu")
    assert streaming.default_chunk_rows(processor) == 2048
    assert streaming.default_chunk_rows(processor, torch.bfloat16) == 4096
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert streaming.default_chunk_rows(processor) == 4096
    assert streaming.default_chunk_rows(torch.device("cuda")) > 2**15


@pytest.mark.parametrize("width, chunks", [(6, 2), (64, 2), (128, 4), (512, 8)])
def test_single_steps_of_narrow_latents_go_through_the_model_in_fewer_calls(
    monkeypatch: pytest.MonkeyPatch, width: int, chunks: int
):
    """Two megabytes of latents a call, at most four times as many rows; with gradients as along paths."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    world, nodes = Bending(width, dtype=torch.float32), torch.zeros(512, 32, width)
    cost = WeightedSum({"goal": (1.0, GoalDistance(distance=mean_square))})
    bound = cost.bind(world, nodes[:, 0], nodes[:, 0])
    actions = torch.zeros(512, 32, 2)
    with torch.no_grad():
        bound.expand(nodes, actions, 1, 4)
    assert world.rows == [512 * 32 // chunks] * chunks
    world.rows.clear()
    bound.expand(nodes, actions, 1, 4)
    assert world.rows == [2048] * 8


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_memory_of_one_step_is_there_for_the_next():
    """Blocks of 24 MB, 240 MB in all, as a gradient through several steps holds them; in a fresh process."""
    script = (
        "import resource, torch\n"
        "from jepaplan.costs.streaming import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for step in range(8):\n"
        "    before = faults()\n"
        "    held = [torch.ones(6 * 2**20) for _ in range(10)]\n"
        "    del held\n"
        "print(faults() - before)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # 61,440 pages, were all fresh; memory settles within two to four steps, and a block of 6,144 may not
    assert int(found.stdout) < 61_440 / 4
