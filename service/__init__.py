"""The serving half of the timeline ranker: everything that runs when a timeline is asked for."""

__version__ = "0.1.0"
