"""Files, locks, parsing, devices and the hub: what every room uses."""
