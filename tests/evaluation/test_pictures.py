import base64
import io
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image

from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.evaluation.pictures import (
    contact_sheet,
    frame_picture,
    framed,
    map_picture,
    polyline,
    scenery_shapes,
)
from jepaplan.evaluation.probes import distance_map
from jepaplan.evaluation.references import PositionDistance
from jepaplan.types import InputError, Patch

WORLD = WallWorld(WALL_BIG)
GOAL = torch.tensor([50.0, 40.0, 32.0, 20.0])


def decoded(picture):
    encoded = re.search(r"data:image/png;base64,([^\"]*)", picture).group(1)
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).long()


def test_a_contact_sheet_is_one_valid_picture_with_every_path():
    generator = torch.Generator().manual_seed(0)
    states = WORLD.sample_tasks(7, generator)[0][:, None].repeat(1, 5, 1)
    sheet = contact_sheet(WORLD, states, columns=3)
    root = ElementTree.fromstring(sheet)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}g")) == 7
    assert root.get("viewBox") == "0 0 200 200"
    assert "7 recorded paths" in root.findtext(f"{space}title")
    with pytest.raises(InputError, match="states of 4 numbers"):
        contact_sheet(WORLD, states[..., :2])


def test_a_map_is_bright_at_the_goal_and_transparent_where_no_dot_fits():
    values = distance_map(WORLD, PositionDistance(WORLD), GOAL)
    picture = map_picture(WORLD, values, GOAL, ("straight line", "pixels"))
    ElementTree.fromstring(picture.svg)
    colours = decoded(picture.svg).view(64, 64, 4)
    assert (colours[..., 3] == 0).equal(values.isnan())
    bright = colours[..., :3].sum(-1) * (colours[..., 3] > 0)
    goal_brightness = bright[40, 50]
    assert goal_brightness == bright.max()
    assert (picture.low, picture.high) == (0.0, pytest.approx(float(values.nan_to_num(0).max())))


def test_a_map_without_values_is_refused():
    with pytest.raises(InputError, match="no finite value"):
        map_picture(WORLD, torch.full((4, 4), math.nan), GOAL, ("empty", "pixels"))


def test_frames_show_the_dot_where_it_is():
    layouts = WORLD.sample_layouts(1, torch.Generator().manual_seed(0))
    frame = WORLD.render(torch.tensor([[10.0, 12.0]]), layouts)[0]
    colours = decoded(frame_picture(frame, 'a "dot"')).view(64, 64, 4)
    assert colours[..., 0].argmax() == 12 * 64 + 10
    assert "&quot;dot&quot;" in frame_picture(frame, 'a "dot"')


def test_the_path_of_an_episode_is_drawn_in_world_coordinates():
    path = polyline(torch.tensor([[10.0, 11.0], [12.5, 13.0]]))
    picture = framed(path, "a path", (0.0, 0.0, 64.0, 64.0))
    assert 'points="10.00,11.00 12.50,13.00"' in picture
    ElementTree.fromstring(picture)


def test_the_two_rooms_are_a_border_and_two_walls():
    drawn = scenery_shapes(WORLD.scenery(GOAL))
    assert 'x="4" y="4" width="55" height="55" fill="none"' in drawn
    assert 'x="31" y="4" width="2" height="12" fill="var(--wall' in drawn
    assert 'x="31" y="24" width="2" height="35" fill="var(--wall' in drawn


@pytest.mark.parametrize(
    "way, tip", [("right", (7.8, 4)), ("left", (2.2, 4)), ("up", (5, 1.2)), ("down", (5, 6.8))]
)
def test_a_one_way_door_points_where_it_leads(way, tip):
    drawn = scenery_shapes([Patch(f"one-way door {way}", (1.0, 0.0), (9.0, 8.0))])
    assert f"L{tip[0]:g} {tip[1]:g}M" in drawn


def test_every_kind_is_drawn_in_its_own_way_and_unknown_ones_name_themselves():
    kinds = ("wall", "pit", "one-way door", "one-way door up", "key", "door", "border", "lava & <fire>")
    drawn = [scenery_shapes([Patch(kind, (1.0, 2.0), (9.0, 10.0))]) for kind in kinds]
    assert len(set(drawn)) == len(kinds)
    for shapes in drawn:
        ElementTree.fromstring(f"<svg>{shapes}</svg>")
    assert "<title>lava &amp; &lt;fire&gt;</title>" in drawn[-1]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_frames_of_one_to_three_channels_have_pictures(channels):
    frame = torch.zeros(channels, 8, 10, dtype=torch.uint8)
    frame[0, 3, 4] = 255
    picture = frame_picture(frame, "a frame")
    assert 'width="10" height="8"' in picture
    assert decoded(picture).view(8, 10, 4)[..., 0].argmax() == 3 * 10 + 4
