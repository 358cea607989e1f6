"""Learning from traces and calibration: nets, budgets, thresholds."""
