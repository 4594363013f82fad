"""Negative controls: situations that look dangerous and are safe, each as small as it can be."""
