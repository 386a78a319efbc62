//! Starts real components.
