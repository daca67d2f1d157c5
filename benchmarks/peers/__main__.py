"""`python -m benchmarks.peers`: see benchmarks/peers/run.py."""

from benchmarks.peers.run import main

if __name__ == "__main__":
    main()
