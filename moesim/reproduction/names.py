"""The published systems that can be run, in the order in which they are."""

NAMES = ("friendli", "nvidia", "expert-router", "qos-moe")
