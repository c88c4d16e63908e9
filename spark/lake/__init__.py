"""The Delta tables: their names, schemas, commits, contents and retention."""
