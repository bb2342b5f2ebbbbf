import base64
import io
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image

from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.evaluation.pictures import contact_sheet, frame_picture, map_picture, path_picture
from jepaplan.evaluation.probes import distance_map
from jepaplan.evaluation.references import PositionDistance
from jepaplan.types import InputError

WORLD = WallWorld(WALL_BIG)


def decoded(picture):
    encoded = re.search(r"data:image/png;base64,([^\"]*)", picture).group(1)
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).long()


def test_a_contact_sheet_is_one_valid_picture_with_every_path():
    generator = torch.Generator().manual_seed(0)
    layouts = WORLD.sample_layouts(7, generator)
    paths = WORLD.sample_positions(layouts, generator)[:, None].repeat(1, 5, 1)
    sheet = contact_sheet(WALL_BIG, layouts, paths, columns=3)
    root = ElementTree.fromstring(sheet)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}g")) == 7
    assert root.get("viewBox") == "0 0 200 200"
    assert "7 recorded paths" in root.findtext(f"{space}title")
    with pytest.raises(InputError, match="one layout per path"):
        contact_sheet(WALL_BIG, layouts, paths[:3])


def test_a_map_is_bright_at_the_goal_and_transparent_where_no_dot_fits():
    values = distance_map(WORLD, PositionDistance(), (32.0, 20.0), (50.0, 40.0))
    picture = map_picture(WALL_BIG, values, (32.0, 20.0), (50.0, 40.0), ("straight line", "pixels"))
    ElementTree.fromstring(picture.svg)
    colours = decoded(picture.svg).view(64, 64, 4)
    assert (colours[..., 3] == 0).equal(values.isnan())
    bright = colours[..., :3].sum(-1) * (colours[..., 3] > 0)
    goal_brightness = bright[40, 50]
    assert goal_brightness == bright.max()
    assert (picture.low, picture.high) == (0.0, pytest.approx(float(values.nan_to_num(0).max())))


def test_a_map_without_values_is_refused():
    with pytest.raises(InputError, match="no finite value"):
        map_picture(WALL_BIG, torch.full((4, 4), math.nan), (32.0, 20.0), (5.0, 5.0), ("empty", "pixels"))


def test_frames_show_the_dot_where_it_is():
    layouts = WORLD.sample_layouts(1, torch.Generator().manual_seed(0))
    frame = WORLD.render(torch.tensor([[10.0, 12.0]]), layouts)[0]
    colours = decoded(frame_picture(frame, 'a "dot"')).view(64, 64, 4)
    assert colours[..., 0].argmax() == 12 * 64 + 10
    assert "&quot;dot&quot;" in frame_picture(frame, 'a "dot"')


def test_the_path_of_an_episode_is_drawn_in_world_coordinates():
    picture = path_picture(WALL_BIG, (30.0, 20.0), torch.tensor([[10.0, 11.0], [12.5, 13.0]]), (50.0, 51.0))
    assert 'points="10.00,11.00 12.50,13.00"' in picture
    ElementTree.fromstring(picture)
