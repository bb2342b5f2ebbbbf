"""What is minimised: losses as functions of tensors, and the modules that sum them for the training loop."""
