"""When and where runs happen, and what came of them. Starts in under a second, without torch."""
