"""Ranks, devices, and what a node allows."""
