"""What people write in TOML and on the command line, and what it resolves to."""
