"""The method: masks, sparse and low-rank layers, the hand-off, adapter files. Torch only."""
