"""Images and their conditions -> code shards, from which a prior is trained."""
