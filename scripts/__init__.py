"""Single-file command line programs."""
