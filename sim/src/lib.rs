//! The simulator of realize.
