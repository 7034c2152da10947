"""`python -m train.adapter`: train an adapter."""

import sys

from train.adapter.train import main

if __name__ == "__main__":
    sys.exit(main())
