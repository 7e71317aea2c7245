"""The experiment `orders`."""
