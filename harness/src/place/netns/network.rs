//! The network of a run: a bridge in a namespace of its own, and a namespace per node, joined to it by a veth pair.
//!
//! ```text
//!   node 1: eth0 10.x.y.11 --- node1 |                          |
//!   node 2: eth0 10.x.y.12 --- node2 | switch (a bridge), air0  |   all anonymous: no name outlives the processes
//! ```
//!
//! Decides which commands of iproute2 make that (`Step`s, pure), and runs them. The rate of a link is a token bucket
//! at both of its ends; air that all share is one token bucket on an IFB device, through which the bridge's ports
//! redirect what nodes send.
//!
//! Nodes know each other's hardware addresses from the beginning. The kernel keeps what it finds out for all namespaces in
//! one table of 1,024 entries, which 33 nodes overflow.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, bail};
use replication::NodeId;

use super::namespace::{Namespace, enter};
use crate::link::Link;
use crate::offload;
use crate::plan::Member;

/// The node's interface, as it sees it.
pub const NODE_INTERFACE: &str = "eth0";
/// Name of the bridge in its namespace.
const BRIDGE: &str = "switch";
/// The device whose token bucket is the air that all share.
const AIR: &str = "air0";
/// Largest packet, in bytes, IP header included.
const MTU: &str = "1500";
/// What may leave at once, as the token bucket needs it to keep up its rate between two timer ticks, in bytes.
const MIN_BURST_BYTES: u64 = 4_000;
/// A bucket fills within this, in milliseconds, so that a burst is no longer than that.
const BURST_MS: u64 = 2;

/// The namespaces of a run. Dropping it leaves them to the processes inside.
#[derive(Debug)]
pub struct Network {
    /// Held, not used any more: with it the bridge would go.
    _switch: Namespace,
    nodes: BTreeMap<NodeId, Namespace>,
}

/// A command line of iproute2.
type Step = Vec<String>;

impl Network {
    /// Makes the network of `members`, who share a /24.
    ///
    /// # Errors
    /// If the system refuses, or a command of iproute2 fails, with its words.
    pub fn build(members: &[Member], link: &Link) -> anyhow::Result<Self> {
        let new = || Namespace::new().context("cannot make a network namespace");
        let switch = new()?;
        execute(&switch, &switch_steps(link))?;
        let mut nodes = BTreeMap::new();
        for member in members {
            let inside = new()?;
            let port = port(member.node);
            execute(&switch, &port_steps(&port, &inside.path(), link))?;
            execute(&inside, &node_steps(member, link))?;
            execute_batch(&inside, &neighbours(member, members))?;
            for (namespace, interface) in [(&switch, port.as_str()), (&inside, NODE_INTERFACE)] {
                let off = namespace.run(|| offload::switch(interface, false));
                off.with_context(|| format!("cannot switch off the offloads of {interface}"))?;
            }
            nodes.insert(member.node, inside);
        }
        Ok(Self { _switch: switch, nodes })
    }

    /// Where `node` belongs.
    #[must_use]
    pub fn namespace(&self, node: NodeId) -> Option<&Namespace> {
        self.nodes.get(&node)
    }
}

/// Whether the commands that a network needs are there.
///
/// # Errors
/// The one that is not.
pub fn check_tools() -> Result<(), &'static str> {
    let works = |program: &&str| {
        let mut command = Command::new(program);
        command.arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    match ["ip", "tc"].iter().find(|program| !works(program)) {
        Some(missing) => Err(missing),
        None => Ok(()),
    }
}

/// Whether the kernel has netem.
///
/// # Errors
/// What `tc` says.
pub fn check_netem() -> anyhow::Result<()> {
    let namespace = Namespace::new().context("cannot make a network namespace")?;
    execute(&namespace, &[step("tc qdisc add dev lo root netem delay 1ms")])
}

fn port(node: NodeId) -> String {
    format!("node{node}")
}

fn step(line: &str) -> Step {
    line.split(' ').map(str::to_owned).collect()
}

fn switch_steps(link: &Link) -> Vec<Step> {
    let mut steps = vec![
        step(&format!("ip link add name {BRIDGE} mtu {MTU} type bridge mcast_snooping 0")),
        step(&format!("ip link set dev {BRIDGE} addrgenmode none")),
        step(&format!("ip link set dev {BRIDGE} up")),
    ];
    if link.shared_air
        && let Some(bucket) = bucket(AIR, link)
    {
        steps.push(step(&format!("ip link add name {AIR} mtu {MTU} type ifb")));
        steps.push(step(&format!("ip link set dev {AIR} addrgenmode none up")));
        steps.push(bucket);
    }
    steps
}

/// One port of the bridge and the interface at its other end, in the namespace at `path`.
fn port_steps(port: &str, path: &str, link: &Link) -> Vec<Step> {
    let mut steps = vec![
        step(&format!(
            "ip link add name {port} mtu {MTU} type veth peer name {NODE_INTERFACE} mtu {MTU} netns {path}"
        )),
        step(&format!("ip link set dev {port} addrgenmode none gso_max_segs 1 master {BRIDGE}")),
        step(&format!("ip link set dev {port} up")),
    ];
    if link.shared_air && link.rate_bits_per_s().is_some() {
        steps.push(step(&format!("tc qdisc add dev {port} handle ffff: ingress")));
        steps.push(step(&format!(
            "tc filter add dev {port} parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev {AIR}"
        )));
    } else {
        steps.extend(bucket(port, link));
    }
    steps
}

fn node_steps(member: &Member, link: &Link) -> Vec<Step> {
    let mut steps = vec![
        step("ip link set dev lo up"),
        step(&format!("ip link set dev {NODE_INTERFACE} addrgenmode none gso_max_segs 1")),
        step(&format!("ip link set dev {NODE_INTERFACE} address {}", hardware_address(member.ip))),
        step(&format!("ip address add {}/24 dev {NODE_INTERFACE}", member.ip)),
        step(&format!("ip link set dev {NODE_INTERFACE} up")),
    ];
    let bucket = if link.shared_air { None } else { bucket(NODE_INTERFACE, link) };
    if let Some(netem) = link.netem_arguments() {
        // Behind the bucket, so that a packet has its rate before it has its delay.
        let parent = if bucket.is_some() { "parent 1:1" } else { "root" };
        steps.extend(bucket);
        steps.push(step(&format!("tc qdisc add dev {NODE_INTERFACE} {parent} netem {netem}")));
    } else {
        steps.extend(bucket);
    }
    steps
}

/// The hardware address of the node at `ip`: locally administered, and as unique as that.
fn hardware_address(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// What `ip -batch` reads to make the others of `members` known to `member` for good.
fn neighbours(member: &Member, members: &[Member]) -> String {
    let others = members.iter().filter(|other| other.node != member.node);
    let line = |other: &Member| {
        let (ip, address) = (other.ip, hardware_address(other.ip));
        format!("neigh add {ip} lladdr {address} nud permanent dev {NODE_INTERFACE}\n")
    };
    others.map(line).collect()
}

/// A token bucket with the link's rate, if it has one.
fn bucket(device: &str, link: &Link) -> Option<Step> {
    let rate = link.rate_bits_per_s()?;
    let burst = (rate / 8 * BURST_MS / 1000).max(MIN_BURST_BYTES);
    let queue = link.queue_ms;
    Some(step(&format!(
        "tc qdisc add dev {device} root handle 1: tbf rate {rate}bit burst {burst}b latency {queue}ms"
    )))
}

fn execute(namespace: &Namespace, steps: &[Step]) -> anyhow::Result<()> {
    for words in steps {
        let line = words.join(" ");
        let (program, arguments) = words.split_first().context("an empty command")?;
        let mut command = inside(namespace, program)?;
        command.args(arguments).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("cannot run `{line}`"))?;
        succeeded(&line, &output)?;
    }
    Ok(())
}

/// Has one `ip` carry out `lines`.
fn execute_batch(namespace: &Namespace, lines: &str) -> anyhow::Result<()> {
    let line = "ip -batch -";
    let mut command = inside(namespace, "ip")?;
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
    // What it has to say is less than a pipe holds, so it reads to the end. If it does not, it says why.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(lines.as_bytes()));
    succeeded(line, &child.wait_with_output().with_context(|| format!("cannot run `{line}`"))?)?;
    written.transpose().with_context(|| format!("`{line}` does not read"))?;
    Ok(())
}

/// `program`, to be run in `namespace`.
fn inside(namespace: &Namespace, program: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(program);
    let handle = namespace.handle()?;
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; setns is a system call.
    unsafe {
        command.pre_exec(move || enter(&handle));
    }
    Ok(command)
}

fn succeeded(line: &str, output: &Output) -> anyhow::Result<()> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        bail!("`{line}` failed: {said}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::tests::link;

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|words| words.join(" ")).collect()
    }

    #[test]
    fn a_rate_is_a_bucket_at_both_ends_of_a_link() {
        let link = link("rate_mbit_per_s = 100");
        let bucket = "root handle 1: tbf rate 100000000bit burst 25000b latency 50ms";
        let member = Member { node: NodeId(3), ip: "10.1.2.13".parse().unwrap() };
        assert!(lines(&node_steps(&member, &link)).contains(&format!("tc qdisc add dev eth0 {bucket}")));
        assert!(
            lines(&port_steps("node3", "/n", &link)).contains(&format!("tc qdisc add dev node3 {bucket}"))
        );
        assert!(!lines(&switch_steps(&link)).iter().any(|line| line.contains("ifb")));
    }

    #[test]
    fn shared_air_is_one_bucket_that_every_port_is_redirected_to() {
        let link = link("rate_mbit_per_s = 20\nshared_air = true");
        let buckets = |steps: &[Step]| lines(steps).iter().filter(|line| line.contains("tbf")).count();
        let member = Member { node: NodeId(3), ip: "10.1.2.13".parse().unwrap() };
        assert_eq!(buckets(&switch_steps(&link)), 1);
        assert_eq!(buckets(&port_steps("node3", "/n", &link)) + buckets(&node_steps(&member, &link)), 0);
        assert!(lines(&port_steps("node3", "/n", &link)).last().unwrap().ends_with("redirect dev air0"));
    }

    #[test]
    fn netem_stands_behind_a_node_s_bucket_or_alone() {
        let member = Member { node: NodeId(3), ip: "10.1.2.13".parse().unwrap() };
        let last = |text: &str| lines(&node_steps(&member, &link(text))).pop().unwrap();
        let with_rate = last("netem = true\ndelay_ms = 1\nrate_mbit_per_s = 100");
        assert_eq!(with_rate, "tc qdisc add dev eth0 parent 1:1 netem limit 16384 delay 1000us 0us");
        for alone in [
            "netem = true\ndelay_ms = 1",
            "netem = true\ndelay_ms = 1\nrate_mbit_per_s = 9\nshared_air = true",
        ] {
            assert_eq!(last(alone), "tc qdisc add dev eth0 root netem limit 16384 delay 1000us 0us");
        }
    }

    #[test]
    fn every_node_knows_the_others_by_their_own_addresses() {
        let members = crate::plan::Plan::members_in("10.1.2.0".parse().unwrap(), 3);
        let address = |member: &Member| hardware_address(member.ip);
        assert_eq!(address(&members[0]), "02:00:0a:01:02:0b");
        let sets = format!("ip link set dev eth0 address {}", address(&members[1]));
        assert!(lines(&node_steps(&members[1], &Link::default())).contains(&sets));
        assert_eq!(
            neighbours(&members[1], &members),
            "neigh add 10.1.2.11 lladdr 02:00:0a:01:02:0b nud permanent dev eth0\n\
             neigh add 10.1.2.13 lladdr 02:00:0a:01:02:0d nud permanent dev eth0\n"
        );
    }

    #[test]
    fn without_a_rate_there_is_no_bucket() {
        let link = Link::default();
        let steps = [switch_steps(&link), port_steps("node1", "/n", &link)].concat();
        assert!(!lines(&steps).iter().any(|line| line.starts_with("tc")), "{steps:?}");
    }
}
