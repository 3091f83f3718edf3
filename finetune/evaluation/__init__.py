"""From predictions to scores, intervals, plots and the report; numpy, pandas, scipy and matplotlib, never a model.

predictions.py reads and writes the table all else begins with; summary.py makes what stands in scores.json of it, from
scores.py (values), ranking.py (AUROC, average precision), reliability.py (calibration error) and intervals.py;
run.py reads a run folder back, report.py makes report.html of it, with the figures of plots.py; compare.py sets
finished runs side by side.
"""
