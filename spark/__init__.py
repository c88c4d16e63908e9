"""What becomes of events: definitions, the lake, the speed, batch and serving layers, and the jobs that run them."""
