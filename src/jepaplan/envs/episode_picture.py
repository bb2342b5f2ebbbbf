"""A picture of one episode for people: walls, start, goal and the path walked so far."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

SCALE = 4  # screen pixels per world pixel
FLOOR, WALL = (250, 249, 246), (70, 74, 84)
PATH, START, GOAL, DOT = (66, 120, 190), (66, 120, 190), (34, 145, 90), (208, 72, 50)


def picture(
    walls: UInt8[np.ndarray, "size size"],
    path: Float[np.ndarray, "frames 2"],
    goal: list[float],
) -> UInt8[np.ndarray, "height width 3"]:
    """RGB, `SCALE` times as large as the world: rings at start and goal, a dot now."""
    colours = np.where(walls[:, :, None] > 0, np.array(WALL, np.uint8), np.array(FLOOR, np.uint8))
    image = Image.fromarray(colours.repeat(SCALE, 0).repeat(SCALE, 1))
    draw = ImageDraw.Draw(image)

    def screen(place: Float[np.ndarray, " 2"] | list[float]) -> tuple[float, float]:
        return (float(place[0]) + 0.5) * SCALE, (float(place[1]) + 0.5) * SCALE

    def disc(place: Float[np.ndarray, " 2"] | list[float], radius: float) -> list[float]:
        x, y = screen(place)
        return [x - radius * SCALE, y - radius * SCALE, x + radius * SCALE, y + radius * SCALE]

    if len(path) > 1:
        draw.line([screen(place) for place in path], fill=PATH, width=2)
    draw.ellipse(disc(path[0], 1.5), outline=START, width=2)
    draw.ellipse(disc(goal, 2.0), outline=GOAL, width=2)
    draw.ellipse(disc(goal, 0.5), fill=GOAL)
    draw.ellipse(disc(path[-1], 1.2), fill=DOT)
    return np.asarray(image)
