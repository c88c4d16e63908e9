"""Quality: the suites of Great Expectations, and the auditor that runs them."""
