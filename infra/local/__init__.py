"""The whole on this machine without containers: an S3 server, Ray and the service."""
