"""What was achieved: fixed instances, episodes, statistics, references, probes, blame and the report."""
