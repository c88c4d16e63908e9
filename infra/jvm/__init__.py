"""Java, the JVM parts, and the environment that a program of ours starts with."""
