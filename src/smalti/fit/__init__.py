"""A folder of images -> a generator: inspection, plan, both trainings, samples and a report page."""
