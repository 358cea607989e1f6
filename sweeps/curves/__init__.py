"""Curves: points of one scorer by their level, and the dense model that they begin at."""
