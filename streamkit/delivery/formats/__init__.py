"""How records become the body of an object: one file a format."""
