"""Files that are whole or not there; a predictor's folder."""
