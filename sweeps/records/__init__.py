"""Run records: reading run.json files, one record for each point, and the names of metrics and kinds."""
