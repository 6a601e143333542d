//! Segmentation offloads and MTU of an interface: with offloads a capture sees one packet of 64 KB where the wire
//! carries 45, and misses 44 headers.

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

/// Switches them all on or off.
///
/// # Errors
/// If there is no such interface, or without CAP_NET_ADMIN.
pub fn switch(interface: &str, on: bool) -> io::Result<()> {
    for command in [SET_TSO, SET_GSO, SET_GRO] {
        ethtool(interface, Value { command, data: on.into() })?;
    }
    Ok(())
}

/// Largest packet of `interface` in bytes, IP header included.
///
/// # Errors
/// If there is no such interface.
pub fn mtu_bytes(interface: &str) -> io::Result<u64> {
    let mut request = request(interface)?;
    ask(libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: the kernel has answered with an MTU in this field.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u64::try_from(mtu).unwrap_or(0))
}

fn ethtool(interface: &str, mut value: Value) -> io::Result<u32> {
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    ask(libc::SIOCETHTOOL, &mut request)?;
    Ok(value.data)
}

/// A question about `interface`.
fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of an interface is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ask(question: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request names an interface with a final zero; what it points to outlives the call.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), question as _, std::ptr::from_mut(request)) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert!(state("nothere0").is_err());
        assert!(state("a-name-that-no-interface-can-have").is_err());
        assert_eq!(state("lo").unwrap().len(), 3);
        assert!(mtu_bytes("nothere0").is_err());
        assert_eq!(mtu_bytes("lo").unwrap(), 65_536);
    }
}
