"""`python -m train.base`: make the embedded base, stage by stage."""

import sys

from train.base.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
