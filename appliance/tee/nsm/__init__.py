"""The Nitro Secure Module: its device, its messages, and the provider whose keys and documents come from it."""
