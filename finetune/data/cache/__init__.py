"""Cache: every image decoded and resized once."""
