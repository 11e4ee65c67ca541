"""The optional sections of a spec, each of which makes it another kind of run."""
