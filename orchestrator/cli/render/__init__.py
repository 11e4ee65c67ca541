"""Plans, audits and runs as tables for the terminal, and as values for JSON."""
