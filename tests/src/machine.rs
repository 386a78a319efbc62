//! What the machine knows of processes: which there are, and where they listen. Linux only.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// A process that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its process id.
    pub pid: u32,
    /// Its arguments, for people.
    pub command: String,
}

/// Every process, apart from this one, that has `folder` in its arguments or its environment.
#[must_use]
pub fn running_of(folder: &Path) -> Vec<Running> {
    let mark = folder.display().to_string();
    let bears = |bytes: &[u8]| {
        bytes
            .windows(mark.len())
            .any(|window| window == mark.as_bytes())
    };
    let pids = fs::read_dir("/proc")
        .expect("Linux has /proc")
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.parse::<u32>().ok()
        });
    let mut running = Vec::new();
    for pid in pids.filter(|pid| *pid != std::process::id()) {
        // One that ends while it is looked at is none.
        let read = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let command = read("cmdline");
        if bears(&command) || bears(&read("environ")) {
            running.push(Running {
                pid,
                command: String::from_utf8_lossy(&command).replace('\0', " "),
            });
        }
    }
    running
}

/// Whether a process runs, and not only waits for its parent to ask for its end.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses.
    let state = status
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}

/// Where these processes listen for connections.
#[must_use]
pub fn listening(pids: &[u32]) -> Vec<SocketAddr> {
    let mut sockets = HashSet::new();
    for pid in pids {
        // One that has ended listens nowhere.
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        sockets.extend(files.filter_map(|file| {
            let target = fs::read_link(file.ok()?.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            Some(inode.to_owned())
        }));
    }
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .map(|table| fs::read_to_string(table).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    rows.filter_map(|row| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let (local, state, inode) = (columns.get(1)?, columns.get(3)?, columns.get(9)?);
        (*state == LISTENS && sockets.contains(*inode)).then(|| address(local))?
    })
    .collect()
}

/// Reads `0100007F:1F90`: words in the byte order of the machine, the port in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| {
        u32::from_str_radix(ip.get(at..at + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn finds_where_this_process_listens() {
        let here = std::process::id();
        for bound in ["127.0.0.1:0", "[::1]:0"] {
            // A machine without IPv6 cannot show it.
            let Ok(listener) = TcpListener::bind(bound) else {
                continue;
            };
            let address = listener.local_addr().unwrap();
            assert!(listening(&[here]).contains(&address), "{address}");
            drop(listener);
            assert!(!listening(&[here]).contains(&address), "{address}");
        }
        assert!(is_alive(here));
        assert!(!is_alive(u32::MAX));
    }
}
