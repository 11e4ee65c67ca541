"""What makes projects boundaries: owned names, quarantine, the audit log, the instance."""
