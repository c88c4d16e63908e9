"""Pure functions from DataFrames to DataFrames. They use no session, no clock and no path."""
