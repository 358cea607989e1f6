"""After the jobs: run records to curves and reports. Imports no torch."""
