"""Event Grid: what happened to blobs and jobs, delivered to webhooks."""
