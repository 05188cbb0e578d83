"""Shipped facts and examples, installed as `moesim.data`: read through `moesim.facts.catalog`."""
