"""The experiments of the paper, by name, on any data and any CLIP."""
