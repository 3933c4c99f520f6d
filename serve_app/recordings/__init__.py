"""Recordings: an upload comes in, the same recording in another voice goes out, while it runs or when it is whole.

Imports `voices`, and what serves all; knows no calls.
"""
