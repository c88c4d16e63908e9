"""What writes to Kafka: sources of events, generators, injected faults, and the replay and repair of records."""
