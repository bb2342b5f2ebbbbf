"""The demo over several training seeds: what a value adds, with intervals that hold for new seeds."""

from typing import Literal

from jepaplan.recipes.local import wall_big_ways
from jepaplan.recipes.reproduction import Claim, Evaluation, Reproduction, Training

SETS = ("WallBig-demo", "WallBig-final")


def demo(scale: Literal["cpu", "full"]) -> Reproduction:
    """The demo's recipe; it has one size, so both scales are the same."""
    experiment = wall_big_ways()
    guidance = {"value-guided": True, "prediction only": False}
    cells = tuple(
        Evaluation(
            name=f"{method}-{instances}".replace(" ", "_"),
            method=method,
            task=instances,
            instances=instances,
            experiment=experiment,
            guided=guided,
        )
        for instances in SETS
        for method, guided in guidance.items()
    )
    return Reproduction(
        name="demo",
        title="The demo's recipe over training seeds",
        introduction=(
            "The same world model, planner and budget, with the value of imagined ways and without it "
            "(distance of latents). Every seed has a recording, weights and batches of its own; instances "
            "are the same."
        ),
        trainings=(Training(name=experiment.recipe, experiment=experiment, evaluations=cells),),
        claims=(
            Claim(
                words="a value beats the distance of latents",
                better="value-guided",
                worse="prediction only",
            ),
        ),
    )
