"""What a restart needs, in one SQLite file."""
