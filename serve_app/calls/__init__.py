"""Live calls: offers and messages of clients come in; answers, messages and converted sound go out.

Imports `graph` and what serves all; the opener of the registry makes voices ready.
"""
