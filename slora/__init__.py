"""The method: masks, sparse and low-rank layers, the hand-off, the adapter folder. Torch only."""
