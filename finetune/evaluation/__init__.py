"""From predictions to scores, intervals, plots and the report; numpy, pandas, scipy and matplotlib, never a model.

predictions.py reads and writes the table all else begins with; summary.py makes what stands in scores.json of it, from
scores.py (values), ranking.py (AUROC, average precision), reliability.py (calibration error) and intervals.py;
report.py makes report.html of a run folder, with the figures of plots.py.
"""
