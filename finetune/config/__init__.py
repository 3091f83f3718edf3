"""Configuration: from what was typed to settings and objects; all of Hydra is here."""
