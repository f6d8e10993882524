"""Sweeps: many trials of one command, by one process or several, what became of each, and what is still to do."""
