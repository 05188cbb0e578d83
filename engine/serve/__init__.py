"""The serving loop: batches from the shared scheduler, forward passes, sampled tokens, records."""
