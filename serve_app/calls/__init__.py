"""Live calls: offers and messages of clients come in; answers, converted sound and what is told go out.

Imports `graph` and what serves all; voices are made ready by who opens the registry.
"""
