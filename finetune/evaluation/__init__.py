"""From predictions to scores and intervals; numpy, pandas and scipy, never a model.

classification/ is for findings and classes, segmentation/ for masks; each begins with a table that all else reads:
predictions.py of logits, table.py of pixel counts. summary.py makes of it what stands in scores.json, assessment.py
fits on val and scores the other splits, harms.py says what speaks against a run, comparison.py compares networks.
wording.py puts numbers into sentences for reports.
"""
