"""What a plan costs, and how fast it runs."""
