"""`python -m ninthsky` is `n9`."""

from ninthsky.cli import main

main()
