"""What is observed: worlds with their physics, pictures and definition of success."""
