"""Benchmarks run against the stack of the integration tests."""

from tests.integration.conftest import stack as stack
