"""Checkpoint generations, fingerprints and starts: where a query begins, and whether it may."""
