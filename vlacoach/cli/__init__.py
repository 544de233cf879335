"""The ``vlacoach`` command: one command a file, results as tables, progress on standard error."""
