import pytest
import torch

from jepaplan.envs.wall import WALL_BIG, WallLayouts, WallWorld
from jepaplan.evaluation.references import (
    HOPELESS,
    DotDistance,
    GaussianActions,
    GeodesicDistance,
    PictureDistance,
    PositionDistance,
    RenderedDistance,
    TrueDynamics,
)
from jepaplan.types import InputError

WORLD = WallWorld(WALL_BIG)


class Scaled:
    """Action units that are a plain multiple."""

    def normalise(self, actions):
        return actions / 1.5

    def inverse(self, actions):
        return actions * 1.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def states(count, seed=0):
    generator = seeded(seed)
    layouts = WORLD.sample_layouts(count, generator)
    return WORLD.state(WORLD.sample_positions(layouts, generator), layouts)


def test_pixel_distance_is_the_distance_of_rendered_images():
    source = states(400)
    goal = source.clone()
    # from nothing to far away, where the images no longer overlap
    goal[:, :2] += torch.randn(400, 2, generator=seeded(1)) * torch.linspace(0, 6, 400)[:, None]
    goal[:, :2] = goal[:, :2].clamp(5, 58)
    source[:, :2] = source[:, :2].clamp(8, 55)  # whole dots only
    goal[:, :2] = goal[:, :2].clamp(8, 55)
    images = [WORLD.observe(state).frames.float() / 255 for state in (source, goal)]
    expected = (images[0] - images[1]).square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(DotDistance()(source, goal), expected, atol=0.02, rtol=0.01)
    torch.testing.assert_close(PictureDistance(WORLD)(source, goal), expected)


def test_geodesic_shortcut_changes_nothing():
    source, goal = states(500), states(500, seed=1)
    goal[:, 2:] = source[:, 2:]
    goal[:, :2] = WORLD.sample_positions(WallLayouts(source[:, 2], source[:, 3]), seeded(2))
    expected = WORLD.geodesic(source[:, :2], goal[:, :2], WallLayouts(source[:, 2], source[:, 3]))
    torch.testing.assert_close(GeodesicDistance(WORLD)(source, goal), expected)
    assert (PositionDistance(WORLD)(source, goal) <= expected + 1e-4).all()
    longer = (expected > PositionDistance(WORLD)(source, goal) + 1).float().mean()
    assert longer > 0.1  # the wall matters


@pytest.mark.parametrize(
    "distance", [PositionDistance(WORLD), DotDistance(), PictureDistance(WORLD), GeodesicDistance(WORLD)]
)
def test_distances_broadcast_over_samples_and_steps(distance):
    source = states(24).view(2, 4, 3, 4)
    goal = source[:, :1, :1] + torch.tensor([1.0, 0, 0, 0])
    together = distance(source, goal)
    assert together.shape == (2, 4, 3)
    alone = distance(source[1, 2, 1][None], goal[1, 0])
    torch.testing.assert_close(together[1, 2, 1], alone[0])


def test_true_dynamics_imagine_what_the_world_does():
    model = TrueDynamics(WORLD, Scaled())
    state = states(6)
    actions = torch.randn(6, 5, 40, 2, generator=seeded(3)) * 3
    imagined = model.rollout(model.encode(state), actions)
    for problem in range(6):
        current = state[problem : problem + 1]
        for step in range(40):
            current = WORLD.step(current, 1.5 * actions[problem, 2, step][None])
            torch.testing.assert_close(imagined[problem, 2, step + 1], current[0], rtol=0, atol=0)


def test_true_dynamics_refuse_images():
    with pytest.raises(InputError, match="observe=true_states"):
        TrueDynamics(WORLD, Scaled()).encode(torch.zeros(2, 2, 64, 64, dtype=torch.uint8))


def test_rendered_distance_compares_encoded_images():
    def centre_of_mass(frames, proprioception=None):
        dot = frames[:, 0].double()
        pixel = torch.arange(64).double()
        mass = dot.sum((1, 2))
        return (
            torch.stack([(dot.sum(1) * pixel).sum(1), (dot.sum(2) * pixel).sum(1)], -1)
            .div(mass[:, None])
            .float()
        )

    def straight(source, goal):
        return (source - goal).norm(dim=-1)

    source, goal = states(30).view(5, 6, 4), states(5, seed=5)[:, None]
    found = RenderedDistance(WORLD, centre_of_mass, straight)(source, goal)
    torch.testing.assert_close(found, PositionDistance(WORLD)(source, goal), atol=0.4, rtol=0)


def test_random_actions_stay_within_the_bound():
    actions = GaussianActions(action_units=Scaled(), max_norm=2.0)(1000, seeded())
    assert float(actions.norm(dim=-1).max()) == pytest.approx(3.0, rel=1e-5)
    assert float(actions.mean()) == pytest.approx(0, abs=0.1)


def test_where_no_way_leads_planners_pay_a_finite_price():
    inside = torch.tensor([[32.0, 50.0, 32.0, 20.0]])  # in the wall
    goal = torch.tensor([[10.0, 50.0, 32.0, 20.0]])
    assert GeodesicDistance(WORLD)(inside, goal).isinf().all()
    assert GeodesicDistance(WORLD, HOPELESS)(inside, goal).tolist() == [HOPELESS]
