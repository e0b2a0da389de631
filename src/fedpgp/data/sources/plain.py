"""Anybody's images: folders, tables, Hugging Face data sets, tars."""

from collections.abc import Mapping

from fedpgp.data.sources.listing import Layout

LAYOUTS: Mapping[str, Layout] = {}
