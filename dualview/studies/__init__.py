"""Grids of runs to an answer with an interval."""
