"""Ray clusters as the control plane sees them, through their Jobs API."""
