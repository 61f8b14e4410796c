"""Pages of the course that run on their own."""
