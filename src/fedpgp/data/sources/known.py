"""Data sets with a name of their own, in the layout in which they are distributed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedpgp.data.sources import cifar, coop, domains, imagenet, mnist, tiny_imagenet
from fedpgp.data.sources.listing import Layout
from fedpgp.errors import DataError

COOP = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
DOMAIN_BED = "https://github.com/facebookresearch/DomainBed"
DOMAINNET = "https://ai.bu.edu/M3SDA"


@dataclass(frozen=True)
class Known:
    """places: where it may lie, relative to the root; layout: how it is read; page: the official one to get it from."""

    places: tuple[str, ...]
    layout: str
    page: str


KNOWN: Mapping[str, Known] = {
    "caltech101": Known(("caltech-101", "caltech101"), "coop", COOP),
    "oxford_pets": Known(("oxford_pets",), "coop", COOP),
    "oxford_flowers": Known(("oxford_flowers",), "coop", COOP),
    "dtd": Known(("dtd",), "coop", COOP),
    "food101": Known(("food-101", "food101"), "coop", COOP),
    "eurosat": Known(("eurosat",), "coop", COOP),
    "ucf101": Known(("ucf101",), "coop", COOP),
    "stanford_cars": Known(("stanford_cars",), "coop", COOP),
    "sun397": Known(("sun397",), "coop", COOP),
    "fgvc_aircraft": Known(("fgvc_aircraft",), "fgvc_aircraft", COOP),
    "imagenet": Known(("imagenet",), "imagenet", COOP),
    "imagenetv2": Known(("imagenetv2",), "imagenetv2", COOP),
    "imagenet-sketch": Known(("imagenet-sketch",), "imagenet-sketch", COOP),
    "imagenet-a": Known(("imagenet-adversarial", "imagenet-a"), "imagenet-a", COOP),
    "imagenet-r": Known(("imagenet-rendition", "imagenet-r"), "imagenet-r", COOP),
    "tiny_imagenet": Known((tiny_imagenet.FOLDER, "tiny_imagenet"), "tiny_imagenet", tiny_imagenet.PAGE),
    "cifar10": Known((cifar.CIFAR10.folder, cifar.CIFAR10.archive, "cifar10", "cifar-10"), "cifar", cifar.PAGE),
    "cifar100": Known((cifar.CIFAR100.folder, cifar.CIFAR100.archive, "cifar100", "cifar-100"), "cifar", cifar.PAGE),
    "mnist": Known(("mnist", "MNIST"), "idx", "http://yann.lecun.com/exdb/mnist"),
    "fashion-mnist": Known(
        ("fashion-mnist", "FashionMNIST", "/usr/share/datasets/fashion-mnist"),
        "idx",
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "kmnist": Known(("kmnist", "KMNIST"), "idx", "https://github.com/rois-codh/kmnist"),
    "office_caltech10": Known(
        ("office_caltech10", "office_caltech_10"), "office_caltech10", "https://github.com/med-air/FedBN"
    ),
    "pacs": Known(("pacs", "PACS"), "pacs", DOMAIN_BED),
    "office_home": Known(("office_home", "OfficeHome"), "office_home", DOMAIN_BED),
    "vlcs": Known(("vlcs", "VLCS"), "vlcs", DOMAIN_BED),
    "domainnet": Known(("domainnet", "DomainNet"), "domainnet", DOMAINNET),
    "domainnet10": Known(("domainnet", "DomainNet"), "domainnet10", DOMAINNET),
}
NAMES = tuple(KNOWN)


def _has_domains(path: Path, name: str) -> bool:
    return domains.recognised(path) == name


LAYOUTS: Mapping[str, Layout] = {
    "coop": Layout(
        "split_zhou_….json of CoOp, with lists of path, label and class name, beside its images",
        coop.recognises,
        coop.read,
    ),
    "fgvc_aircraft": Layout(
        "variants.txt, images_variant_train.txt, …val.txt, …test.txt, and images/NUMBER.jpg",
        imagenet.is_aircraft,
        imagenet.read_aircraft,
    ),
    "imagenet": Layout(
        "images/train/IDENTIFIER/…, images/val/IDENTIFIER/…, and classnames.txt with identifiers and names",
        imagenet.is_imagenet,
        imagenet.read_imagenet,
    ),
    **{
        name: Layout(
            f"{images}/CLASS/… and classnames.txt, a version of ImageNet to be tested on",
            partial(imagenet.is_version, name=name),
            partial(imagenet.read_version, name=name),
        )
        for name, images in imagenet.VERSIONS.items()
    },
    "tiny_imagenet": Layout(
        "wnids.txt, words.txt, train/IDENTIFIER/images/…, val/images/… and val/val_annotations.txt",
        tiny_imagenet.recognises,
        tiny_imagenet.read,
    ),
    "idx": Layout(
        "train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-…, gzipped or not, as of MNIST",
        mnist.recognises,
        mnist.read,
    ),
    "cifar": Layout(
        "cifar-10-batches-py or cifar-100-python, the Python version of CIFAR, or its archive .tar.gz",
        cifar.recognises,
        cifar.read,
    ),
    "domainnet": Layout(
        "clipart_train.txt, clipart_test.txt and the lists of the other five domains of DomainNet, and their images",
        domains.has_lists,
        domains.read_lists,
    ),
    "domainnet10": Layout(
        "the same, of which the ten classes of FedBN are read; by name alone",
        lambda _: False,
        domains.read_ten,
    ),
    **{
        name: Layout(
            f"a folder for each of {', '.join(of)}, in each one for each class",
            partial(_has_domains, name=name),
            partial(domains.read_folders, name=name),
        )
        for name, of in domains.FOLDERS.items()
    },
}


def find(name: str, root: Path) -> Path:
    """Where a known data set lies below a directory; raises DataError with the places that were looked at."""
    known = KNOWN[name]
    places = [root / place for place in known.places]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise DataError(
            f"data.source {name} is not in data.root: looked at {', '.join(map(str, places))}; get it from"
            f" {known.page} and put it at the first of these, or set data.root"
        )
    return path


def layout(name: str) -> str:
    """The name of the layout in which a known data set is distributed."""
    return KNOWN[name].layout
