"""What collection leaves on disk."""
