"""The methods written as naively as possible, from the papers, to compare the library with.

Nothing here comes from the library. What is random (first values, order of the images, participants) is an input.
"""
