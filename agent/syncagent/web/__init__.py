"""What an agent shows over HTTP: health, metrics, and the state of its site as JSON."""
