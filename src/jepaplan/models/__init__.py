"""What is learned: encoders, predictors of their latents, the world model that joins them, and distances."""
