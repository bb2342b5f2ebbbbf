"""Training: the loop, its checkpoints and runs, several processes, schedules and the health of latents."""
