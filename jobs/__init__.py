"""How a run executes on a cluster: spec, plan, data, model, engine, store."""
