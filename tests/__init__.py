"""Tests: the folders mirror the packages; what spans packages stands here."""
