"""Data sources: each turns its own folder or table into the one SampleTable.

A new source is a dataclass whose fields are its configuration, with a method `def table(self) -> SampleTable`.
It reads tables and lists folders; it never decodes an image. Where the user chooses the classes, it passes
all labels of the data set as `strata`, so that the choice moves no patient to another split.
"""
