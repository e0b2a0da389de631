"""Grids: cells that differ in their configs, each a comparison in a directory of its own."""

from fedpgp.grid.sweep import load_sweep, resume_sweep, sweep

__all__ = ["load_sweep", "resume_sweep", "sweep"]
