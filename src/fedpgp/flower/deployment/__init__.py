"""A federation across machines: its server's and its clients' side on Flower, and the files that start them."""
