"""Run folders on disk: the only truth about what was computed."""
