"""A report as Markdown, HTML, LaTeX, CSV and JSON."""
