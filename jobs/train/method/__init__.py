"""The method in a run: masks, inits, layers, hand-off, and the adapter they end in."""
