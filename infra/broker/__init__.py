"""Kafka as the platform sees it: offsets, ranges of them, and calls that are bounded in time."""
