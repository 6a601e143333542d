//! Linux capabilities that this process needs, and how to give them to it. Asks the kernel; changes nothing.

use rustix::thread::{CapabilitySet, capabilities};

/// To open raw sockets.
pub const NET_RAW: Capability = Capability("CAP_NET_RAW", CapabilitySet::NET_RAW);
/// To make and set up interfaces.
pub const NET_ADMIN: Capability = Capability("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN);
/// To make namespaces.
pub const SYS_ADMIN: Capability = Capability("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN);

/// A capability and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability(&'static str, CapabilitySet);

/// The names of those in `needed` that this thread does not have in force, joined by "and"; none if it has them all.
#[must_use]
pub fn missing(needed: &[Capability]) -> Option<String> {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing: Vec<&str> =
        needed.iter().filter(|capability| !effective.contains(capability.1)).map(|lack| lack.0).collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

/// What gives a program the capabilities of a capture, before its path.
pub const CAPTURE_SETCAP: &str = "sudo setcap cap_net_raw,cap_net_admin=ep";

/// The words that help somebody whose program may not capture.
#[must_use]
pub fn capture_remedy() -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "harness".into());
    let program = crate::cli::shell_line(&[program.display().to_string()]);
    format!("run it as root, or once: {CAPTURE_SETCAP} {program}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_is_not_missing() {
        assert_eq!(missing(&[]), None);
        let nobody_has = Capability("CAP_OF_TOMORROW", CapabilitySet::from_bits_retain(1 << 63));
        assert_eq!(missing(&[nobody_has, nobody_has]).unwrap(), "CAP_OF_TOMORROW and CAP_OF_TOMORROW");
    }

    #[test]
    fn the_remedy_names_the_program() {
        let remedy = capture_remedy();
        assert!(remedy.contains("setcap cap_net_raw,cap_net_admin=ep /"), "{remedy}");
    }
}
