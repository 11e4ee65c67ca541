"""Deployments: a name on an inference server that follows an adapter, with canary and rollback."""
