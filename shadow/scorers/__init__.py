"""Who says what matters."""
