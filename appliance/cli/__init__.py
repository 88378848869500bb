"""The `nova-kms` command and its subcommands."""
