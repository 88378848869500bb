"""The SDK that applications use."""
