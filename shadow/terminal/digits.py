"""How many digits of a number people read."""


def digits(value: float) -> str:
    """Three that count, and all of whole numbers: 0.0123, 12.3, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
