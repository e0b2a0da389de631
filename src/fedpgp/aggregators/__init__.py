"""The server-side aggregation rules, by the names that the config uses.

It may import the runtime and errors. Start with `base`: the contract of an aggregator.
"""

from fedpgp.aggregators.adaptive import FedAdam, FedYogi
from fedpgp.aggregators.averaging import FedAvg, FedAvgM
from fedpgp.aggregators.base import Aggregator, Download, Server, Tensors, Upload
from fedpgp.aggregators.controlled import FedDyn, Scaffold
from fedpgp.aggregators.krum import Bulyan, Krum, MultiKrum
from fedpgp.aggregators.robust import Median, TrimmedMean

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
    )
}

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Bulyan",
    "Download",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedDyn",
    "FedYogi",
    "Krum",
    "Median",
    "MultiKrum",
    "Scaffold",
    "Server",
    "Tensors",
    "TrimmedMean",
    "Upload",
]
