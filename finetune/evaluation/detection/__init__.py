"""Of boxes: matched with the true boxes, then COCO's scores, FROC, operating points, calibration, harms.

detections.py holds the table that all else begins with; matching.py pairs its boxes; scorer.py gives the scores under
weights of the patients, from which summary.py and comparison.py make intervals; assessment.py writes what stands in
scores.json. Boxes match at an IoU of 0.5 or more, unless a name says otherwise.
"""
