"""Data sources: each turns its own folder or table into the one SampleTable.

A source of your own is a dataclass whose fields are its configuration and which has `def table(self) -> SampleTable`.
It reads tables and lists folders; it never decodes an image. Where the user chooses what is learned, it gives all that
the data set says as `strata`, so that the choice moves nobody from one split to another.
"""
