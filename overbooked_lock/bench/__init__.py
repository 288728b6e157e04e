"""The load harness: what a deployment bears, and whether it keeps its promises meanwhile."""
