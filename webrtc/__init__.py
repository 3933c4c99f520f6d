"""Packets of a call and recordings in any container come in and leave as float32 mono; converted sound goes back out
as packets and encoded recordings. Of ours it imports `configs` only, and it alone imports aiortc and av.
"""
