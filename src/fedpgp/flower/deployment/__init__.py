"""Federations across machines: the server and the clients on Flower, and the files that start them."""
