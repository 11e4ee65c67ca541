"""The local stack without containers: an S3 server, Ray and the service."""
