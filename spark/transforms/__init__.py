"""Pure functions, DataFrame to DataFrame: they know no session, clock or path."""
