"""What this machine is and has, and what ends with its owner."""
