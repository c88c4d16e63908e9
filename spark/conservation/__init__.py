"""The conservation audit: each offset on the broker is exactly one row of bronze."""
