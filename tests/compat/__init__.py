"""Programs written for Amazon's libraries, on real nodes: in this process, and as child processes."""
