"""Online and serverless endpoints that really serve: processes, probes, traffic, and the way to them."""
