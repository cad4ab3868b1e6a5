"""Tensors of models out of other programs' folders, and into such: docs/checkpoints.md, "Interchange"."""
