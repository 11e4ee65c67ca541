"""Workers of a federation, each of which trains clients in turn, and their messages."""
