"""The aggregation rules of the server, by their names in the config.

This package may import the runtime and errors. Start with `base`, the contract of an aggregator.
"""

from fedpgp.aggregators.averaging import FedAdam, FedAvg, FedAvgM, FedYogi
from fedpgp.aggregators.base import Aggregator, Download, Server, Tensors, Upload
from fedpgp.aggregators.controlled import FedDyn, Scaffold
from fedpgp.aggregators.robust import Bulyan, GeometricMedian, Krum, Median, MultiKrum, TrimmedMean

AGGREGATORS: dict[str, type[Aggregator]] = {
    aggregator.name: aggregator
    for aggregator in (
        FedAvg,
        FedAvgM,
        FedAdam,
        FedYogi,
        Scaffold,
        FedDyn,
        Median,
        TrimmedMean,
        Krum,
        MultiKrum,
        Bulyan,
        GeometricMedian,
    )
}

__all__ = [  # the names that a new aggregator needs; import a built-in one from AGGREGATORS or from its module
    "AGGREGATORS",
    "Aggregator",
    "Download",
    "FedAvg",
    "Server",
    "Tensors",
    "Upload",
]
