"""Measuring images, tokenizers and priors: metrics, feature networks, protocols, results."""
