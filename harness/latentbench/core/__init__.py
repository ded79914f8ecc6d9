"""What everything else stands on: the base of spec parts, errors, hashing, text, plug-ins and the protocols of adapters."""
