"""The operations that roles are made of. Each asks for state in one remote command, and changes what
differs in one more."""
