"""A local Azure: identity, Resource Manager and Azure ML, Event Grid and the Functions host on one machine."""
