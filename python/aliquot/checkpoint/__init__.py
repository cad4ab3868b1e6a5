"""Checkpoints: docs/checkpoints.md describes the format, the protocol and what they promise."""
