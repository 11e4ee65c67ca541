"""Migrations of the schema, one file a revision, each with an upgrade and a downgrade."""
