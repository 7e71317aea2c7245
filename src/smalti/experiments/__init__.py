"""The demo and the paper's experiments, each a small file that ends in a report page."""
