"""What could not be done and rests: dead jobs, judged and redriven; dead messages, kept."""
