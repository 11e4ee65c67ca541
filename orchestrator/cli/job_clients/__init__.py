"""Clients that start a job: on a Ray that runs, or beside one that starts."""
