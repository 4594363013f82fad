"""Small programs without a kernel, for measuring the search and checking its counts."""
