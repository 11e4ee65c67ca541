"""Stream the rows of each kind of file."""
