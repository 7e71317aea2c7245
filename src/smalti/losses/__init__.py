"""What scores an image: pixel losses, the perceptual distance, and the discriminator with its adversarial losses.

Models compute, losses score, the loop talks: everything here maps tensors to tensors and has no logger, no step
counter and no device.
"""
