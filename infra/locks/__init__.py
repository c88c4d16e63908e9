"""Who may write: the streaming driver's lease and the lock of the batch jobs."""
