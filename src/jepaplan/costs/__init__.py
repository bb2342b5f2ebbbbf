"""What a sequence of actions costs: named, weighted terms over imagined latents. Lower is better."""
