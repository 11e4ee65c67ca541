"""The base model on one worker: loading, sharding, and its frozen layers."""
