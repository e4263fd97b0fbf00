"""Run folders on disk: the source of truth for what was computed."""
