"""Observe, plan, act, shift: planners and costs turned into something that acts in an environment."""
