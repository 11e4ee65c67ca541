"""The cluster that a run is on: Ray's address, its workers, the dtype of its machines."""
