"""The batch layer: plans, recomputes, compares, explains and publishes closed hours."""
