"""Jobs from Python: the same composition, checks, run folder and bits as the command line.

`words` turns arguments into the words of the command line, `frames` tables into files, `calls` are the functions.
"""
