"""What is measured, from models and images to a `Measured`: a tokenizer, a prior, or two sets of images.

Everything is a stream: memory does not depend on the number of images, except for their names, a few numbers of each,
and the features that a protocol keeps.
"""

from smalti.evaluation.image_sets import measure_sets, with_available_network
from smalti.evaluation.prior_scores import measure_prior
from smalti.evaluation.results import Measured
from smalti.evaluation.tokenizer_scores import measure_tokenizer

__all__ = ["Measured", "measure_prior", "measure_sets", "measure_tokenizer", "with_available_network"]
