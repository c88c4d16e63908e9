"""Entry points for spark-submit and plain python: each builds, wires and waits."""
