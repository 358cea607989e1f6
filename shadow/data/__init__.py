"""Text and tasks: what is calibrated on and measured on."""
