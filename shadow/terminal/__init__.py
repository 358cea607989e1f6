"""What a job says in the terminal."""
