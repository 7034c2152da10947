"""CustomContrast's page and its API: `python app.py`. What it does is in customcontrast/ui/server.py."""

import sys

from customcontrast.ui.server import Page, launch, main, options

__all__ = ["Page", "launch", "main", "options"]

if __name__ == "__main__":
    sys.exit(main())
