"""The version of bench: part of every run folder, report and export."""

__version__ = "0.1.0"
