"""Pages and plots from results."""
