"""The Great Expectations suites, and the auditor that runs them."""
