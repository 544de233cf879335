"""LIBERO as Gymnasium environments; NumPy and MuJoCo, no torch."""
