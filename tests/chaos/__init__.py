"""Faults and concurrency: what must hold while servers, networks and processes fail."""
