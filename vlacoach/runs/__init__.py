"""The run folder: configuration, metrics, episodes, events, checkpoints, statistics. Files only, no torch."""
