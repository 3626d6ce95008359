"""`mrgen` whose trainings report as often as REPORT_SECONDS of the environment says, so that short ones can be timed."""

import os

import mrgen.prior.train
from mrgen.cli import main

mrgen.prior.train.REPORT_SECONDS = float(os.environ["REPORT_SECONDS"])

if __name__ == "__main__":
    main()
