//! What exists: pools and networks.
