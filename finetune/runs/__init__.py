"""Run folders: what a run writes, reads back, and which images it knows."""
