"""The door to Ray clusters: what the control plane asks of one, by its Jobs API."""
