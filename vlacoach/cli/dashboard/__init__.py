"""The live dashboard of a run: widgets and panes that read the run folder only."""
