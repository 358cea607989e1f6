"""The command `shadow`: what is told before a job begins, and commands that are no jobs. Without torch."""
