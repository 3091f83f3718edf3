"""Classification: from a table of predictions to scores; no torch."""
