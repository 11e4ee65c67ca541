"""Many sites, one adapter: clients train on rows of their own, and only what is trained travels."""
