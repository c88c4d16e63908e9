"""The commands of `millrace`, one module each. Heavy imports happen inside the commands, so that `--help` is quick."""
