//! The judge against its specification: worked numbers, the laws that its promise rests on, and whole rollouts.

mod checks;
mod kinds;
mod laws;
mod stories;
mod traffic_model;
mod vectors;
mod watch;
