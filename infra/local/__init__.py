"""The embedded stack: PostgreSQL, Kafka, schema registry and Airflow on one machine, kept alive by supervisor."""
