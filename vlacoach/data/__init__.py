"""Demonstrations on disk, in LIBERO's layout; no torch."""
