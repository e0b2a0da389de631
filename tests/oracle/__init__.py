"""Naive implementations of the methods, written from the papers, to compare with the library.

They do not use the library. Random values (initial parameters, order of the images, participants) are inputs.
"""
