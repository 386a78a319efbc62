//! Addresses for what has to be found again after it was away.
//!
//! This file is a module of two crates: of this one, and of the tests of `pipeline-demo`, which cannot depend on it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Ports below those that Linux gives to outgoing connections: nobody takes one while its owner is away.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// An address on loopback that is free now and, see [`PORTS`], stays so.
pub(crate) fn free_address() -> SocketAddr {
    let ports = u64::from(PORTS.end - PORTS.start);
    loop {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        let port = PORTS.start + (random % ports) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
