"""What breaks things on purpose: bad input, killed runs, full disks, memory that gives out, curious visitors."""
