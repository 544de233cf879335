"""Engines that run ``vlacoach train`` elsewhere; they start the same command and hold no training of their own."""
