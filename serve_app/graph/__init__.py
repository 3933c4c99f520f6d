"""The stages as Ray Serve deployments, and the handles that ask them: requests of stages in, their results out.

Imports the voices' store and cache, `errors`, `metrics` and `threads`; knows no HTTP and no calls.
"""
