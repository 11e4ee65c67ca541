"""What belongs to a project: its store, its places, its pointers, its credentials, its secrets."""
