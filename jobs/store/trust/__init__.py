"""Trust: which keys may sign versions and pointers, what they sign, and the checks of readers."""
