"""What is remembered: recorded episodes, windows of them, goals, and the units in which models think."""
