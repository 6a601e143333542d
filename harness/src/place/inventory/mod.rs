//! Ansible inventories, INI and YAML: which hosts there are, and what is said of each.
//!
//! ```text
//!   ini, yaml   a file's text -> groups of hosts with variables: pure
//!   here        groups -> hosts in order, each with the variables that hold for it; what they mean to us: pure, apart
//!               from `load`
//! ```
//!
//! Of Ansible's variables it heeds `ansible_host`, `ansible_user` and `ansible_port`, of others those that begin with
//! `harness_`. It does not know what is done with a host.

mod ini;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The group that every host is in.
const ALL: &str = "all";
/// Hosts of an inventory, as many as there can be nodes.
pub const MAX_HOSTS: usize = 244;
/// Groups within groups.
const MAX_DEPTH: usize = 32;

/// Variables of a host or a group.
type Variables = BTreeMap<String, String>;

/// Why an inventory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InventoryError(String);

fn error(text: impl Into<String>) -> InventoryError {
    InventoryError(text.into())
}

/// What a file says, before groups are resolved.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    /// Hosts in the order of their first appearance, with their own variables.
    hosts: Vec<(String, Variables)>,
    groups: BTreeMap<String, Group>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Group {
    hosts: BTreeSet<String>,
    children: BTreeSet<String>,
    variables: Variables,
}

impl Groups {
    fn group(&mut self, name: &str) -> &mut Group {
        self.groups.entry(name.into()).or_default()
    }

    /// Puts `host` into `group`; its variables are added to those it has.
    fn host(&mut self, group: &str, host: &str, variables: Variables) -> Result<(), InventoryError> {
        self.group(group).hosts.insert(host.into());
        if let Some((_, own)) = self.hosts.iter_mut().find(|(name, _)| name == host) {
            own.extend(variables);
        } else if self.hosts.len() == MAX_HOSTS {
            return Err(error(format!("more than {MAX_HOSTS} hosts")));
        } else {
            self.hosts.push((host.into(), variables));
        }
        Ok(())
    }

    /// Every group within `name`, itself included, with its depth below it.
    fn within(&self, name: &str) -> Result<BTreeMap<&str, usize>, InventoryError> {
        let mut depths = BTreeMap::new();
        let mut waiting = vec![(name, 0)];
        while let Some((name, depth)) = waiting.pop() {
            if depth > MAX_DEPTH {
                return Err(error(format!("group {name} is within itself, or too deep")));
            }
            let Some((name, group)) = self.groups.get_key_value(name) else {
                return Err(error(format!("there is no group {name}")));
            };
            // Not once for each way that leads to it: there can be very many.
            if depths.get(name.as_str()).is_none_or(|known| *known < depth) {
                depths.insert(name.as_str(), depth);
                waiting.extend(group.children.iter().map(|child| (child.as_str(), depth + 1)));
            }
        }
        Ok(depths)
    }

    /// The hosts of `group` in the order of the file, each with the variables that hold for it: its own, then those of the
    /// groups it is in, the innermost first.
    fn resolve(&mut self, group: &str) -> Result<Vec<(String, Variables)>, InventoryError> {
        let top: BTreeSet<String> = self.groups.keys().filter(|name| *name != ALL).cloned().collect();
        self.group(ALL).children.extend(top);
        let mut order: Vec<(&str, usize)> = self.within(ALL)?.into_iter().collect();
        order.sort_by_key(|(name, depth)| (*depth, *name));
        let hosts_within = |name: &str| -> Result<BTreeSet<&String>, InventoryError> {
            Ok(self.within(name)?.keys().flat_map(|inner| &self.groups[*inner].hosts).collect())
        };
        let members = hosts_within(group)?;
        let order: Vec<(&str, BTreeSet<&String>)> =
            order.into_iter().map(|(name, _)| Ok((name, hosts_within(name)?))).collect::<Result<_, _>>()?;
        let mut resolved = Vec::new();
        for (host, own) in &self.hosts {
            if group != ALL && !members.contains(host) {
                continue;
            }
            let mut variables = Variables::new();
            for (name, within) in &order {
                if *name == ALL || within.contains(host) {
                    variables.extend(self.groups[*name].variables.clone());
                }
            }
            variables.extend(own.clone());
            resolved.push((host.clone(), variables));
        }
        Ok(resolved)
    }
}

/// A host, as we see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name in the inventory.
    pub name: String,
    /// Name or address for ssh.
    pub destination: String,
    /// User for ssh; none: what ssh's own configuration says.
    pub user: Option<String>,
    /// Port for ssh; none: what ssh's own configuration says.
    pub port: Option<u16>,
    /// Address of its node.
    pub address: Ipv4Addr,
    /// Interface of that address; none: whichever has it.
    pub interface: Option<String>,
    /// Path of the program on the host.
    pub program: String,
    /// Speed in MB of BLAKE3 per second, in place of what it measures.
    pub cpu_mb_per_s: Option<u64>,
    /// Main memory, in place of what it measures.
    pub memory_bytes: Option<u64>,
    /// Bandwidth, in place of what its kernel states.
    pub bandwidth_bits_per_s: Option<u64>,
    /// Whether it is on mains power, in place of what it finds.
    pub mains_power: Option<bool>,
    /// The command, with its arguments, that cuts its power, run by the controller.
    pub power_off: Option<Vec<String>>,
}

/// The hosts of a run: node i is on the i-th.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shelf {
    /// The inventory.
    pub file: PathBuf,
    /// Configuration of ssh; none: ssh's own.
    pub ssh_config: Option<PathBuf>,
    /// In the inventory's order.
    pub hosts: Vec<Host>,
}

/// Where the program is on a host that does not say otherwise.
pub const DEFAULT_PROGRAM: &str = "/usr/local/bin/harness";

const PREFIX: &str = "harness_";
const KEYS: [&str; 8] = [
    "harness_address",
    "harness_interface",
    "harness_program",
    "harness_cpu_mb_per_s",
    "harness_memory_bytes",
    "harness_bandwidth_bits_per_s",
    "harness_mains_power",
    "harness_power_off",
];

impl Host {
    fn of(name: &str, variables: &Variables) -> Result<Self, InventoryError> {
        let wrong = |what: String| error(format!("host {name}: {what}"));
        let unknown = variables.keys().find(|key| key.starts_with(PREFIX) && !KEYS.contains(&key.as_str()));
        if let Some(key) = unknown {
            return Err(wrong(format!("unknown variable {key}; there are {}", KEYS.join(", "))));
        }
        let text = |key: &str| variables.get(key).cloned();
        let destination = text("ansible_host").unwrap_or_else(|| name.into());
        for (what, value) in [("its name", name), ("ansible_host", &destination)] {
            if !is_host_name(value) {
                return Err(wrong(format!("{what} {value:?} is no name or address")));
            }
        }
        let user = text("ansible_user");
        if let Some(user) = user.as_ref().filter(|user| !is_user_name(user)) {
            return Err(wrong(format!("ansible_user {user:?} is no user name")));
        }
        let address = match (text("harness_address"), destination.parse()) {
            (Some(_), _) => parsed(name, variables, "harness_address", "an IPv4 address")?,
            (None, Ok(address)) => Some(address),
            (None, Err(_)) => None,
        };
        let address = address
            .ok_or_else(|| wrong("no address of its node; give harness_address=A.B.C.D".to_owned()))?;
        let program = text("harness_program").unwrap_or_else(|| DEFAULT_PROGRAM.into());
        if program.is_empty() || program.contains('\0') {
            return Err(wrong("harness_program is no path".into()));
        }
        let power_off = text("harness_power_off").map(|line| ini::words(&line)).transpose();
        let power_off = power_off.map_err(|what| wrong(format!("harness_power_off: {what}")))?;
        if power_off.as_ref().is_some_and(Vec::is_empty) {
            return Err(wrong("harness_power_off is empty; write a command".into()));
        }
        Ok(Self {
            name: name.into(),
            user,
            port: parsed(name, variables, "ansible_port", "a port")?,
            address,
            interface: text("harness_interface"),
            program,
            cpu_mb_per_s: parsed(name, variables, "harness_cpu_mb_per_s", "a number of MB/s")?,
            memory_bytes: parsed(name, variables, "harness_memory_bytes", "a number of bytes")?,
            bandwidth_bits_per_s: parsed(
                name,
                variables,
                "harness_bandwidth_bits_per_s",
                "a number of bit/s",
            )?,
            mains_power: parsed::<YesNo>(name, variables, "harness_mains_power", "yes or no")?
                .map(|yes| yes.0),
            power_off,
            destination,
        })
    }
}

/// A truth value as Ansible writes it.
struct YesNo(bool);

impl FromStr for YesNo {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.to_ascii_lowercase().as_str() {
            "yes" | "true" => Ok(Self(true)),
            "no" | "false" => Ok(Self(false)),
            _ => Err(()),
        }
    }
}

fn parsed<T: FromStr>(
    host: &str,
    variables: &Variables,
    key: &str,
    what: &str,
) -> Result<Option<T>, InventoryError> {
    let parse = |value: &String| {
        value.parse().map_err(|_| error(format!("host {host}: {key} {value:?} is not {what}")))
    };
    variables.get(key).map(parse).transpose()
}

/// Whether ssh may be given this as a destination: nothing that it could take for an option or for more than a name.
fn is_host_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(plain)
}

fn is_user_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(plain)
}

/// The hosts of `group` (all, if none is named) that an inventory's `text` lists, in its order.
///
/// # Errors
/// What is wrong, with its line or host.
pub fn parse(text: &str, is_yaml: bool, group: Option<&str>) -> Result<Vec<Host>, InventoryError> {
    let mut groups = if is_yaml { yaml::groups(text)? } else { ini::groups(text)? };
    let resolved = groups.resolve(group.unwrap_or(ALL))?;
    let hosts = resolved.iter().map(|(name, variables)| Host::of(name, variables));
    let hosts: Vec<Host> = hosts.collect::<Result<_, _>>()?;
    if hosts.is_empty() {
        return Err(error("it lists no host"));
    }
    let mut seen = BTreeMap::new();
    for host in &hosts {
        if let Some(other) = seen.insert(host.address, &host.name) {
            let address = host.address;
            return Err(error(format!("hosts {other} and {} have the same address {address}", host.name)));
        }
    }
    Ok(hosts)
}

/// Reads an inventory file: YAML if its name ends in .yml or .yaml, INI otherwise.
///
/// # Errors
/// If it cannot be read, or as [`parse`].
pub fn load(path: &Path, group: Option<&str>) -> Result<Vec<Host>, InventoryError> {
    let text = fs::read_to_string(path).map_err(|cause| error(format!("cannot be read ({cause})")))?;
    let is_yaml = path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml");
    parse(&text, is_yaml, group)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INI: &str = "\
# A shelf.
lonely ansible_host=10.0.0.9

[boards]
pi[01:03] harness_interface=wlan0   ; three of a kind
pi04 ansible_host=10.0.0.4 ansible_user=pi ansible_port=2222 harness_power_off='curl -s \"http://plug/4 off\"'

[boards:vars]
harness_program = /opt/harness
harness_mains_power=yes

[slow]
pi04 harness_cpu_mb_per_s=100 harness_memory_bytes=1000000000

[shelf:children]
boards

[shelf:vars]
harness_program=/never
harness_bandwidth_bits_per_s=1000000

[all:vars]
ansible_user=root
";

    const YAML: &str = "\
all:
  vars: {ansible_user: root}
  hosts:
    lonely: {ansible_host: 10.0.0.9}
  children:
    shelf:
      vars: {harness_program: /never, harness_bandwidth_bits_per_s: 1000000}
      children:
        boards:
          hosts:
            pi01: &kind {harness_interface: wlan0, harness_address: 10.0.0.1}
            pi02: {harness_interface: wlan0, harness_address: 10.0.0.2}
            pi03: {harness_interface: wlan0, harness_address: 10.0.0.3}
            pi04:
              ansible_host: 10.0.0.4
              ansible_user: pi
              ansible_port: 2222
              harness_power_off: curl -s 'http://plug/4 off'
              some_list: [1, 2]
          vars:
            harness_program: /opt/harness
            harness_mains_power: true
    slow:
      hosts:
        pi04: {harness_cpu_mb_per_s: 100, harness_memory_bytes: 1000000000}
    empty:
";

    fn ini_with_addresses() -> String {
        let addresses = (1..=3).map(|n| format!("pi0{n} harness_address=10.0.0.{n}\n"));
        format!("{INI}[addresses]\n{}", addresses.collect::<String>())
    }

    #[test]
    fn ini_and_yaml_say_the_same() {
        let ini = parse(&ini_with_addresses(), false, None).unwrap();
        let yaml = parse(YAML, true, None).unwrap();
        assert_eq!(ini, yaml);
        let names: Vec<&str> = ini.iter().map(|host| host.name.as_str()).collect();
        assert_eq!(names, ["lonely", "pi01", "pi02", "pi03", "pi04"]);
        let pi04 = &ini[4];
        assert_eq!(pi04.program, "/opt/harness", "the inner group's word holds");
        assert_eq!((pi04.user.as_deref(), pi04.port), (Some("pi"), Some(2222)));
        assert_eq!((pi04.cpu_mb_per_s, pi04.mains_power), (Some(100), Some(true)));
        assert_eq!(pi04.power_off.as_ref().unwrap().last().unwrap(), "http://plug/4 off");
        assert_eq!((ini[0].user.as_deref(), ini[0].program.as_str()), (Some("root"), DEFAULT_PROGRAM));
        assert_eq!(ini[1].bandwidth_bits_per_s, Some(1_000_000));
    }

    #[test]
    fn a_group_can_be_chosen() {
        let names = |group| {
            let hosts = parse(YAML, true, Some(group));
            hosts.map(|hosts| hosts.iter().map(|host| host.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names("shelf").unwrap(), ["pi01", "pi02", "pi03", "pi04"]);
        assert_eq!(names("slow").unwrap(), ["pi04"]);
        assert_eq!(names("empty").unwrap_err().to_string(), "it lists no host");
        assert_eq!(names("fast").unwrap_err().to_string(), "there is no group fast");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (
                "a harness_adress=10.0.0.1",
                "host a: unknown variable harness_adress; there are harness_address,",
            ),
            ("a", "host a: no address of its node; give harness_address=A.B.C.D"),
            ("a harness_address=10.0.0", "host a: harness_address \"10.0.0\" is not an IPv4 address"),
            (
                "a ansible_host=-oProxyCommand=x",
                "host a: ansible_host \"-oProxyCommand=x\" is no name or address",
            ),
            ("10.0.0.1 ansible_user='-x y'", "host 10.0.0.1: ansible_user \"-x y\" is no user name"),
            ("10.0.0.1 ansible_port=http", "host 10.0.0.1: ansible_port \"http\" is not a port"),
            (
                "a ansible_host=10.0.0.1\nb ansible_host=10.0.0.1",
                "hosts a and b have the same address 10.0.0.1",
            ),
            ("10.0.0.1 harness_mains_power=maybe", "is not yes or no"),
            ("10.0.0.1 harness_power_off=''", "harness_power_off is empty"),
            ("10.0.0.[1:300]", "line 1: more than 244 hosts"),
            ("[a\n", "line 1: a group ends with ]"),
            ("[a:friends]\n", "line 1: a:friends is neither a group, its vars nor its children"),
            ("[a:vars]\nx\n", "line 2: not NAME=VALUE"),
            ("a x", "line 1: \"x\" is not NAME=VALUE"),
            ("a x='y", "line 1: a quotation mark is missing"),
            ("[a:children]\nb\n[b:children]\na\n", "within itself"),
            ("", "it lists no host"),
        ] {
            let message = parse(text, false, None).unwrap_err().to_string();
            assert!(message.contains(expected), "{text:?}: {message}");
        }
        for text in ["all: [", "all:\n  host:\n    a:\n", "- a\n", "all: {hosts: {a: 7}}"] {
            let message = parse(text, true, None).unwrap_err().to_string();
            assert!(!message.is_empty(), "{text:?}");
        }
    }

    #[test]
    fn groups_that_many_ways_lead_to_are_looked_at_once() {
        let level = |level: u32| {
            let children = ["a", "b"].map(|side| format!("{side}{}\n", level + 1)).concat();
            ["a", "b"].map(|side| format!("[{side}{level}:children]\n{children}")).concat()
        };
        let levels: String = (0..30).map(level).collect();
        let hosts = parse(&format!("{levels}[a30]\n10.0.0.1 ansible_user=pi\n"), false, Some("b0")).unwrap();
        assert_eq!(hosts[0].user.as_deref(), Some("pi"));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "[a-z0-9\\[\\]:=#;'\" \n.{}-]{0,200}") {
            let _ = parse(&text, false, None);
            let _ = parse(&text, true, None);
        }

        #[test]
        fn what_is_written_is_read(
            hosts in prop::collection::btree_map(1_u8..250, ("[a-z][a-z0-9]{0,8}", 1_u16..), 1..20)
        ) {
            let line = |(last, (user, port)): (&u8, &(String, u16))| {
                format!("h{last} ansible_host=10.1.1.{last} ansible_user={user} ansible_port={port}\n")
            };
            let ini: String = hosts.iter().map(line).collect();
            let line = |(last, (user, port)): (&u8, &(String, u16))| {
                format!("    h{last}: {{ansible_host: 10.1.1.{last}, ansible_user: '{user}', ansible_port: {port}}}\n")
            };
            let yaml: String = hosts.iter().map(line).collect();
            let read = parse(&ini, false, None).unwrap();
            prop_assert_eq!(&read, &parse(&format!("all:\n  hosts:\n{yaml}"), true, None).unwrap());
            let expected: Vec<(String, u16)> = hosts.into_values().collect();
            let found: Vec<(String, u16)> =
                read.into_iter().map(|host| (host.user.unwrap(), host.port.unwrap())).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
