"""One module per command of the command line: its options, and `run`, which does it and prints."""
