"""Studies: grids of runs, compared with confidence intervals."""
