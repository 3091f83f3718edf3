"""Phantoms: synthetic chest X-rays for the demo."""
