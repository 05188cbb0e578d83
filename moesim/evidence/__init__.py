"""Measured beside predicted: how far off, and how far two real runs are from each other."""
