"""Where voices are kept: small interfaces, one implementation per kind of storage."""
