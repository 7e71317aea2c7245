"""What an image is asked to be: one file a kind of condition, all with the signature of `base.Condition`."""
