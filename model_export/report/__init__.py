"""The report on a run: one HTML page for people who did not train the model."""
