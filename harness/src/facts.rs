//! What a host has of what a node needs of it. Reads, and binds ports to try them; changes nothing.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;

use replication::Digest;
use serde::{Deserialize, Serialize};
use workloads::federated::shard::Piece;

use crate::board::Board;
use crate::capability::{self, NET_RAW};
use crate::machine::Machine;
use crate::{control, data, offload};

/// What a node needs of its host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Needs {
    /// The node's address.
    pub address: Ipv4Addr,
    /// UDP ports it binds there.
    pub ports: Vec<u16>,
    /// Where its data is; none: it needs none.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// Whose images it needs of the data.
    #[serde(default)]
    pub piece: Option<Piece>,
}

/// What a host has of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Version of the program.
    pub version: String,
    /// Version of the control protocol.
    pub protocol: u32,
    /// The machine.
    pub machine: Machine,
    /// What changes while it runs.
    pub board: Board,
    /// Names of its interfaces.
    pub interfaces: Vec<String>,
    /// The one that has the node's address.
    pub interface: Option<String>,
    /// Ports that cannot be bound, each with the system's reason.
    pub refused_ports: Vec<(u16, String)>,
    /// Which offloads of that interface are on: packets are then captured joined.
    #[serde(default)]
    pub offloads: Vec<String>,
    /// Size of the program's file.
    #[serde(default)]
    pub program_bytes: u64,
    /// BLAKE3 of the program's file, which tells builds apart.
    #[serde(default)]
    pub program_digest: Option<Digest>,
    /// Whether the program has the engine torch.
    #[serde(default)]
    pub has_torch: bool,
    /// Why the data cannot be used.
    #[serde(default)]
    pub data_refused: Option<String>,
    /// Capabilities that a capture needs and the program lacks.
    pub missing_capabilities: Option<String>,
}

/// This program's own file.
const PROGRAM: &str = "/proc/self/exe";

/// Names of the offloads of `interface` that are on.
fn offloads(interface: &str) -> Vec<String> {
    let state = offload::state(interface).unwrap_or_default();
    state.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect()
}

impl Facts {
    /// What this machine has of `needs`.
    #[must_use]
    pub fn of(needs: &Needs) -> Self {
        let interfaces = pnet_datalink::interfaces();
        let has = |interface: &&pnet_datalink::NetworkInterface| {
            interface.ips.iter().any(|network| network.ip() == IpAddr::from(needs.address))
        };
        let own = interfaces.iter().find(has);
        // On loopback nothing is as on a wire.
        let on_wire = own.filter(|interface| !interface.is_loopback());
        let offloads = on_wire.map(|interface| offloads(&interface.name)).unwrap_or_default();
        let interface = own.map(|interface| interface.name.clone());
        let refused = |port: &u16| {
            let refused = UdpSocket::bind((needs.address, *port)).err()?;
            Some((*port, refused.to_string()))
        };
        // Without the address every port would be refused for the same reason.
        let ports = if interface.is_some() { needs.ports.as_slice() } else { &[] };
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: control::VERSION,
            machine: Machine::this(),
            board: Board::this(),
            refused_ports: ports.iter().filter_map(refused).collect(),
            program_bytes: fs::metadata(PROGRAM).map_or(0, |file| file.len()),
            program_digest: fs::read(PROGRAM).ok().map(|bytes| Digest::of(&bytes)),
            has_torch: cfg!(feature = "torch"),
            offloads,
            data_refused: needs
                .data
                .as_deref()
                .and_then(|data| data::check(data, needs.piece.as_slice()).err())
                .map(|error| error.to_string()),
            missing_capabilities: capability::missing(&[NET_RAW]),
            interface,
            interfaces: interfaces.into_iter().map(|interface| interface.name).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_address_or_with_a_taken_port_says_so() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let facts =
            Facts::of(&Needs { address: Ipv4Addr::LOCALHOST, ports: vec![port], data: None, piece: None });
        assert_eq!(facts.interface.as_deref(), Some("lo"));
        assert_eq!(facts.refused_ports[0].0, port);
        let facts = Facts::of(&Needs {
            address: Ipv4Addr::new(192, 0, 2, 1),
            ports: vec![port],
            data: None,
            piece: None,
        });
        assert_eq!((facts.interface, facts.refused_ports), (None, vec![]));
    }
}
