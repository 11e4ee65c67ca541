"""Parts of `tests.benchmarks.service_kills`: job, service, what is killed, the count."""
