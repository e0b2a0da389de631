"""Methods: their contract, one file for each method, plug-ins by other authors, and published settings.

This package may import aggregators, data and the backbone. It does not know run directories, processes or Flower.
Start with `base`, then read `promptfl`.
"""

from fedpgp.methods.base import (
    STRICT,
    Batch,
    Frozen,
    Method,
    Params,
    PromptMethod,
    SinglePromptMethod,
    TrainedMethod,
    logits,
    mean_cosine,
    normal,
)
from fedpgp.methods.centralized import Centralized
from fedpgp.methods.dp_fpl import DPFPL
from fedpgp.methods.fedclip import FedCLIP
from fedpgp.methods.fedcocoop import FedCoCoOp
from fedpgp.methods.fedivlp import FedIVLP
from fedpgp.methods.fedkgcoop import FedKgCoOp
from fedpgp.methods.fedmaple import FedMaPLe
from fedpgp.methods.fedmgp import FedMGP
from fedpgp.methods.fedotp import FedOTP
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.methods.fedpha import FedPHA
from fedpgp.methods.fedplot import FedPLOT
from fedpgp.methods.fedproda import FedProDA
from fedpgp.methods.fedprograd import FedProGrad
from fedpgp.methods.fedpromptsrc import FedPromptSRC
from fedpgp.methods.fedtpg import FedTPG
from fedpgp.methods.fedvpt import FedVPT
from fedpgp.methods.local import Local
from fedpgp.methods.pfedmma import PFedMMA
from fedpgp.methods.pfedmoap import PFedMoAP
from fedpgp.methods.pfedprompt import PFedPrompt
from fedpgp.methods.prompt_amp import PromptAMP
from fedpgp.methods.prompt_per import PromptPer
from fedpgp.methods.promptfl import PromptFL
from fedpgp.methods.promptfolio import PromptFolio
from fedpgp.methods.promptprox import PromptProx
from fedpgp.methods.templates import templates_of
from fedpgp.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ZeroShot,
        Centralized,
        Local,
        PromptFL,
        PromptProx,
        PromptPer,
        PromptAMP,
        FedKgCoOp,
        FedProGrad,
        FedProDA,
        PFedPrompt,
        FedTPG,
        FedPGP,
        PromptFolio,
        DPFPL,
        PFedMoAP,
        FedPHA,
        FedCLIP,
        FedCoCoOp,
        FedPLOT,
        FedOTP,
        FedVPT,
        FedIVLP,
        FedMaPLe,
        FedPromptSRC,
        FedMGP,
        PFedMMA,
    )
}

__all__ = [  # the names that a new method needs; import a built-in method from METHODS or from its module
    "METHODS",
    "STRICT",
    "Batch",
    "Frozen",
    "Method",
    "Params",
    "PromptMethod",
    "SinglePromptMethod",
    "TrainedMethod",
    "logits",
    "mean_cosine",
    "normal",
    "templates_of",
]
