"""Decoding: files of many formats -> uint8 images."""
