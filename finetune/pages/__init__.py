"""Pages: report, comparison and explanation, their templates, styles, plots and wording."""
