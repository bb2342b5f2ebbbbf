"""Search over action sequences: no planner here has heard of images, encoders or goals."""
