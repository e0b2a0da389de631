"""Grids: cells that differ in their configs, each a comparison in a directory of its own."""
