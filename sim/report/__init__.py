"""Reports: what a trace shows, made from the trace alone."""
