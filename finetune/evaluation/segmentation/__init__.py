"""Segmentation: from label maps to scores per image and region, intervals over patients, harms; no torch.

collect.py turns one pair of label maps after the other into a row of the case table (table.py), so that no mask stays
in memory; cases.py counts pixels and measures distances. Everything else reads the table: summary.py makes scores.json
of it, assessment.py fits on val and scores test, comparison.py compares networks. folders.py reads masks of any
origin; mean_shape.py adds up the training masks for the baseline.

To add a score: its name in scores.py and its values in cases.py or scores.py; table, summary and comparison follow.
"""
