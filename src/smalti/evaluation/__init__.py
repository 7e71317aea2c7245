"""Measuring what was learnt, and showing it: metrics, the networks they need, and reports to look at."""
