"""`python -m train.base`: make the embedded base, stage by stage."""

from train.base.pretrain import main

if __name__ == "__main__":
    main()
