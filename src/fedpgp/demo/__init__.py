"""A small federation to watch in a browser, on the embedded data: `fedpgp demo`."""
