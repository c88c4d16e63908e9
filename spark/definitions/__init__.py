"""The definitions that all layers share: measures, windows, stateful results, Avro types and instants."""
