"""Self-contained HTML reports: blocks, charts, and the page of an evaluation."""
