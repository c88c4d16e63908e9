"""Which topics, tables and views are made of which, and the events that report it."""
