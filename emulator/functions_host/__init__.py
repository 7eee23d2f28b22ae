"""A local Azure Functions host (Python v2 model): loads an app by the worker's rules, drives its triggers."""
