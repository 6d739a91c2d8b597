"""What a device's programs take of a machine: deployments on loopback, looked at from outside."""
