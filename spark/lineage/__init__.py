"""Lineage: which topics, tables and views are made of which, and the OpenLineage events that report it."""
