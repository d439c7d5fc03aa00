"""Sources of impressions, and the one record form that all are turned into."""
