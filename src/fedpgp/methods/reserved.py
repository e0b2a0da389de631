"""Names that mean something in a config file or in the place of a method, so that no method may have them."""

SECTIONS = ("data", "task", "backbone", "federation", "privacy")  # of every config, in the order of a written one
RECIPE = "recipe"  # a table that is no section: of those files whose configs are fedpgp reproduce's
EXTENDS = "extends"  # the key that names another recipe
ALL = "all"  # every built-in method
