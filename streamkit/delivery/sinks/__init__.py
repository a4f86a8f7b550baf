"""Where chunks go: one file a sink; each loads its library when it is made."""
