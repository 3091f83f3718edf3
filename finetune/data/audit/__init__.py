"""Audit: leaks, copies, unreadable images and shortcuts, before training."""
