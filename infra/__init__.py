"""What the platform runs on: settings, services and their operations, and the command line."""
