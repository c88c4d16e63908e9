"""The merged views that people query, in DuckDB, in Spark SQL and as Arrow: `spark.serving.ask.ask`."""
