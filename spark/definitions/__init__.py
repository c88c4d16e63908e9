"""What a number, a window, a stateful result and an Avro type are."""
