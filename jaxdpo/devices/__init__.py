"""The devices of a run: mesh, sharding, memory and the compilation cache."""
