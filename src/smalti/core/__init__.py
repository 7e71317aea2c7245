"""What is not about images: errors, settings, files, devices, processes, random numbers, progress."""
