"""The speed layer: the ingest, stateful queries and alert lane of the streaming driver."""
