"""Names that no method may have, because they have another meaning in a config file or on the command line."""

SECTIONS = ("data", "task", "backbone", "federation", "privacy")  # of every config, in the order of a written one
RECIPE = "recipe"  # a table, not a section: only in the recipes of `fedpgp reproduce`
EXTENDS = "extends"  # the key that names the recipe to extend
ALL = "all"  # stands for every built-in method
