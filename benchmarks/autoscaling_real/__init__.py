"""One trace against a real service that scales itself, and the same in the simulator."""
