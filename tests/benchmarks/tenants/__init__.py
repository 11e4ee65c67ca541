"""A hostile project attacks another one on a real service; what it reached is counted."""
