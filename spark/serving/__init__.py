"""The merged views that people query, in DuckDB and in Spark SQL."""
