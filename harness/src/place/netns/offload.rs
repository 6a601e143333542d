//! Segmentation offloads of an interface: with them a capture sees one packet of 64 KB where the wire carries 45, and
//! misses 44 headers.

use std::io;
use std::os::fd::AsRawFd as _;

// From linux/ethtool.h.
const GET_TSO: u32 = 0x1e;
const SET_TSO: u32 = 0x1f;
const GET_GSO: u32 = 0x23;
const SET_GSO: u32 = 0x24;
const GET_GRO: u32 = 0x2b;
const SET_GRO: u32 = 0x2c;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Which offloads of an interface are on, as ethtool names them.
///
/// # Errors
/// If there is no such interface.
pub fn state(interface: &str) -> io::Result<Vec<(&'static str, bool)>> {
    [("tso", GET_TSO), ("gso", GET_GSO), ("gro", GET_GRO)]
        .into_iter()
        .map(|(name, command)| Ok((name, ethtool(interface, Value { command, data: 0 })? != 0)))
        .collect()
}

/// Switches them all off.
///
/// # Errors
/// If there is no such interface, or without root.
pub(super) fn switch_off(interface: &str) -> io::Result<()> {
    for command in [SET_TSO, SET_GSO, SET_GRO] {
        ethtool(interface, Value { command, data: 0 })?;
    }
    Ok(())
}

fn ethtool(interface: &str, mut value: Value) -> io::Result<u32> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of an interface is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the request names an interface with a final zero and points to a value that outlives the call.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert!(state("nothere0").is_err());
        assert!(state("a-name-that-no-interface-can-have").is_err());
        assert_eq!(state("lo").unwrap().len(), 3);
    }
}
