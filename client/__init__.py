"""The client: send handwritten digits to the service and get its answers."""

from client.digits import AsyncDigitsClient, DigitsClient
from client.messages import DigitsError, Explained, Explanation, FieldViolation, Network, Predictions

__all__ = [
    "AsyncDigitsClient",
    "DigitsClient",
    "DigitsError",
    "Explained",
    "Explanation",
    "FieldViolation",
    "Network",
    "Predictions",
]
