"""Statistics: intervals, ranking, shares; numpy and scipy alone."""
