"""Recipes: one page per paper; names become objects here and nowhere else."""
