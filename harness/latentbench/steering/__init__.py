"""Ways to a steering vector, as a `steering:` section names them, and what steering costs on neutral text."""
