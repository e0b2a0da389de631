"""Functions that write the tables and figures of each kind of directory, see `fedpgp.runs.execution.Writers`."""

from fedpgp.report.ablation import write_ablation as ablation
from fedpgp.report.comparison import write_comparison as comparison
from fedpgp.report.grid import write_sweep as sweep
from fedpgp.report.reproduction import write_reproduction as reproduction

__all__ = ["ablation", "comparison", "reproduction", "sweep"]
