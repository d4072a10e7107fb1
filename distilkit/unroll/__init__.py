"""What the unroller is made of: the inner problem, the two adjoints, the trajectory on the host, and what "auto" stands for."""
