"""Voices: reference recordings come in; records, features and the state of both go out.

Imports what serves all, and no other journey.
"""
