//! What is the ring's own; the rest is in the conformance suite.
