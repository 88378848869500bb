"""`python -m appliance`: the same as the `nova-kms` command."""

from appliance.cli import main

main()
