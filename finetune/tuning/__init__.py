"""Tuning: the search space, and a study of Optuna over it. Nothing here trains; `jobs/tune.py` does the trials."""
