"""The sections of a report as a document."""
