"""The job plane: files in a shared home, workers that pull them."""
