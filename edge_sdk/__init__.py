"""The SDK that a device app embeds."""
