//! Examines hosts before nodes run on them: what would keep a run from working, and what to do about it.
//!
//! Asks every host at once over ssh; what is not in order follows from the answers alone ([`findings`]).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use workloads::federated::shard::{Cut, Piece};

use crate::capability::CAPTURE_SETCAP;
use crate::clock::{self, Exchange, Offset, offset};
use crate::control::codec::LineReader;
use crate::facts::{Facts, Needs};
use crate::place::inventory::Host;
use crate::probe::{Answer, Question};
use crate::ssh::{self, Trouble};
use crate::units::{show_bytes, show_ns};

/// How long a host may take for everything.
const PATIENCE: Duration = Duration::from_secs(40);
/// Exchanges of the time; the shortest counts.
const EXCHANGES: usize = 8;
/// Below this a node has no room.
const MIN_MEMORY_BYTES: u64 = 256 * 1024 * 1024;
const MIN_DISK_BYTES: u64 = 64 * 1024 * 1024;
/// A clock that is this far away makes logs of different hosts hard to compare.
const MAX_UTC_OFFSET_NS: u64 = 1_000_000_000;
/// Digits of a digest that are shown.
const SHOWN_DIGITS: usize = 12;
/// Most bytes of a host's words that are kept.
const MAX_SAID_BYTES: u64 = 64 * 1024;

/// What was found out about a host.
#[derive(Debug, Clone)]
pub struct Examined {
    /// What it has.
    pub facts: Facts,
    /// Its time of day less ours.
    pub utc: Offset,
    /// Its CLOCK_MONOTONIC less ours.
    pub monotonic: Offset,
}

/// Something about a host that is not in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether a run would fail; otherwise its figures may suffer.
    pub fatal: bool,
    /// What it is, and what helps.
    pub trouble: Trouble,
}

/// What every host is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// UDP ports.
    pub ports: Vec<u16>,
    /// Where the data is; none: none is needed.
    pub data: Option<PathBuf>,
    /// How the run shares the data out; none: that is not known, or there is none.
    pub cut: Option<Cut>,
    /// Whether the engine is libtorch.
    pub torch: bool,
}

/// What each of `hosts` says, in order.
pub async fn examine_all(
    hosts: &[Host],
    config: Option<&Path>,
    wanted: &Wanted,
) -> Vec<Result<Examined, Trouble>> {
    let mut tasks = Vec::new();
    for (host, place) in hosts.iter().zip(1..) {
        let needs = Needs {
            address: host.address,
            ports: wanted.ports.clone(),
            data: wanted.data.clone(),
            piece: wanted.cut.filter(|cut| place <= cut.nodes).map(|cut| Piece { place, cut }),
        };
        let arguments = ssh::arguments(host, config, &["probe"]);
        tasks.push((host, tokio::spawn(examine(host.clone(), arguments, needs))));
    }
    let mut examined = Vec::new();
    for (host, task) in tasks {
        let lost = |_| Err(ssh::trouble(host, None, "the examination was given up"));
        examined.push(task.await.unwrap_or_else(lost));
    }
    examined
}

/// What is not in order, host by host: what each says of itself, and where it differs from the others.
#[must_use]
pub fn findings(
    hosts: &[Host],
    examined: &[Result<Examined, Trouble>],
    wanted: &Wanted,
) -> Vec<Vec<Finding>> {
    let of = |(host, examined): (&Host, &Result<Examined, Trouble>)| match examined {
        Ok(examined) => judge(host, examined, wanted),
        Err(trouble) => vec![Finding { fatal: true, trouble: trouble.clone() }],
    };
    let mut all: Vec<Vec<Finding>> = hosts.iter().zip(examined).map(of).collect();
    let facts: Vec<(&Host, Option<&Facts>)> = hosts
        .iter()
        .zip(examined)
        .map(|(host, examined)| (host, examined.as_ref().ok().map(|examined| &examined.facts)))
        .collect();
    for (found, more) in all.iter_mut().zip(compare(&facts)) {
        found.extend(more);
    }
    all
}

/// Hosts of one architecture whose programs are not the same build.
fn compare(hosts: &[(&Host, Option<&Facts>)]) -> Vec<Option<Finding>> {
    let differs = |(at, (_, facts)): (usize, &(&Host, Option<&Facts>))| {
        let facts = (*facts)?;
        let alike = |(_, other): &&(&Host, Option<&Facts>)| {
            other.is_some_and(|other| other.machine.architecture == facts.machine.architecture)
        };
        let (first, other) = hosts[..at].iter().find(alike)?;
        let other = (*other)?;
        let build = |facts: &Facts| (facts.program_bytes, facts.program_digest);
        (build(other) != build(facts)).then(|| {
            let (ours, theirs) = (build_of(facts), build_of(other));
            let wrong =
                format!("its program is another build than that of {} ({ours}, not {theirs})", first.name);
            let remedy = "copy the same binary to all hosts of an architecture".into();
            Finding { fatal: true, trouble: Trouble { wrong, remedy } }
        })
    };
    hosts.iter().enumerate().map(differs).collect()
}

/// What tells a build from others, in words.
fn build_of(facts: &Facts) -> String {
    let digest = facts.program_digest.map_or_else(|| "unknown".into(), |digest| digest.to_string());
    format!("{} B, BLAKE3 {}", facts.program_bytes, digest.get(..SHOWN_DIGITS).unwrap_or(&digest))
}

async fn examine(host: Host, arguments: Vec<String>, needs: Needs) -> Result<Examined, Trouble> {
    let mut command = Command::new("ssh");
    command.args(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    let spawned = command.spawn();
    let mut child = spawned.map_err(|error| Trouble {
        wrong: format!("ssh cannot be started here ({error})"),
        remedy: "install openssh-client".into(),
    })?;
    match tokio::time::timeout(PATIENCE, ask(&mut child, needs)).await {
        Ok(Some(examined)) => return Ok(examined),
        // What ended by itself has an exit code that tells why.
        Ok(None) => {}
        Err(_) => {
            let _ = child.start_kill();
        }
    }
    let last_words = async {
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(MAX_SAID_BYTES).read_to_string(&mut said).await;
        }
        (child.wait().await.ok().and_then(|status| status.code()), said)
    };
    let (code, said) = tokio::time::timeout(PATIENCE, last_words).await.unwrap_or_default();
    Err(ssh::trouble(&host, code, &said))
}

/// The answers to all questions; none if the stream ended before.
async fn ask(child: &mut Child, needs: Needs) -> Option<Examined> {
    let mut stdin = child.stdin.take()?;
    let mut lines = LineReader::new(BufReader::new(child.stdout.take()?));
    let (mut utc, mut monotonic) = (Vec::new(), Vec::new());
    for _ in 0..EXCHANGES {
        let asked = (clock::monotonic_ns(), clock::utc_ns());
        let answer = question(&mut stdin, &mut lines, &Question::Clocks).await?;
        let answered = (clock::monotonic_ns(), clock::utc_ns());
        let Answer::Clocks { monotonic_ns, utc_ns } = answer else { return None };
        monotonic.push(Exchange { asked_ns: asked.0, shown_ns: monotonic_ns, answered_ns: answered.0 });
        utc.push(Exchange { asked_ns: asked.1, shown_ns: utc_ns, answered_ns: answered.1 });
    }
    let Answer::Facts(facts) = question(&mut stdin, &mut lines, &Question::Facts(needs)).await? else {
        return None;
    };
    Some(Examined { facts: *facts, utc: offset(&utc)?, monotonic: offset(&monotonic)? })
}

async fn question(
    stdin: &mut ChildStdin,
    lines: &mut LineReader<BufReader<ChildStdout>>,
    question: &Question,
) -> Option<Answer> {
    let line = serde_json::to_string(question).ok()? + "\n";
    stdin.write_all(line.as_bytes()).await.ok()?;
    lines.next().await.ok()?
}

/// What is not in order.
fn judge(host: &Host, examined: &Examined, wanted: &Wanted) -> Vec<Finding> {
    let finding = |fatal| move |(wrong, remedy)| Finding { fatal, trouble: Trouble { wrong, remedy } };
    let fatal = hindrances(host, &examined.facts, wanted).into_iter().map(finding(true));
    fatal.chain(doubts(host, examined).into_iter().map(finding(false))).collect()
}

/// What keeps a node from running there, and what to do about it.
fn hindrances(host: &Host, facts: &Facts, wanted: &Wanted) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let ours = (env!("CARGO_PKG_VERSION"), crate::control::VERSION);
    if (facts.version.as_str(), facts.protocol) != ours {
        let theirs = format!("its program is version {} (protocol {})", facts.version, facts.protocol);
        found.push((theirs, format!("copy version {} (protocol {}) there", ours.0, ours.1)));
    }
    let interfaces = facts.interfaces.join(", ");
    match (&facts.interface, &host.interface) {
        (None, _) => found.push((
            format!("none of its interfaces ({interfaces}) has the address {}", host.address),
            "correct harness_address in the inventory".into(),
        )),
        (Some(has), Some(wanted)) if has != wanted => found.push((
            format!("{} is the address of {has}, not of {wanted}; it has {interfaces}", host.address),
            "correct harness_interface or harness_address in the inventory".into(),
        )),
        _ => {}
    }
    for (port, reason) in &facts.refused_ports {
        let wrong = format!("UDP port {port} cannot be used ({reason})");
        found.push((wrong, format!("see who has it: ss -ulpn sport = :{port}")));
    }
    if let Some(refused) = &facts.data_refused {
        found.push((refused.clone(), "copy its data there, or leave --data out".into()));
    }
    if wanted.torch && !facts.has_torch {
        let remedy =
            "build with --features torch (scripts/cross-build aarch64-torch), or use --engine candle";
        found.push(("its program has no engine torch".into(), remedy.into()));
    }
    for (what, available, least) in [
        ("memory", facts.board.memory_available_bytes, MIN_MEMORY_BYTES),
        ("space in /var/tmp", facts.board.disk_available_bytes, MIN_DISK_BYTES),
    ] {
        if available < least {
            let wrong = format!("only {} of {what} are free", show_bytes(available));
            found.push((wrong, format!("free at least {}", show_bytes(least))));
        }
    }
    found
}

/// What makes its figures doubtful, and what to do about it.
fn doubts(host: &Host, examined: &Examined) -> Vec<(String, String)> {
    let Examined { facts, utc, .. } = examined;
    let mut found = Vec::new();
    if let Some(missing) = &facts.missing_capabilities {
        let wrong = format!("it cannot capture packets: {missing} is missing");
        found.push((wrong, format!("{CAPTURE_SETCAP} {}", host.program)));
    }
    if let (Some(interface), false) = (&facts.interface, facts.offloads.is_empty()) {
        let on = &facts.offloads;
        let off: Vec<_> = on.iter().map(|name| format!("{name} off")).collect();
        let wrong = format!("{} of {interface} is on: packets are captured joined", on.join(", "));
        found.push((wrong, format!("sudo ethtool -K {interface} {}", off.join(" "))));
    }
    let away_ns = utc.offset_ns.unsigned_abs();
    if away_ns > MAX_UTC_OFFSET_NS + utc.uncertainty_ns {
        let side = if utc.offset_ns > 0 { "ahead" } else { "behind" };
        found.push((format!("its clock is {} {side}", show_ns(away_ns)), "run chrony on it".into()));
    }
    if facts.board.is_throttled() {
        found.push(("it is throttled now".into(), "give it a better supply or cooling".into()));
    }
    if let Some(governor) = facts.board.governor.as_ref().filter(|governor| *governor != "performance") {
        let remedy = "set the governor performance, or its figures depend on its load".into();
        found.push((format!("its governor is {governor}"), remedy));
    }
    found
}

#[cfg(test)]
mod tests {
    use replication::Digest;

    use super::*;
    use crate::board::Board;
    use crate::place::inventory;

    fn examined() -> Examined {
        let board = Board {
            memory_available_bytes: MIN_MEMORY_BYTES,
            disk_available_bytes: MIN_DISK_BYTES,
            governor: Some("performance".into()),
            ..Board::default()
        };
        let facts = Facts {
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: crate::control::VERSION,
            board,
            interface: Some("wlan0".into()),
            interfaces: vec!["lo".into(), "wlan0".into()],
            has_torch: true,
            ..Facts::default()
        };
        let exact = Offset { offset_ns: 0, uncertainty_ns: 1_000_000 };
        Examined { facts, utc: exact, monotonic: exact }
    }

    fn wrong(change: impl FnOnce(&mut Examined)) -> Vec<(bool, String)> {
        let text = "pi1 ansible_host=10.0.0.1 harness_interface=wlan0";
        let host = inventory::parse(text, false, None).unwrap().remove(0);
        let mut examined = examined();
        change(&mut examined);
        let wanted = Wanted { torch: true, ..Wanted::default() };
        let findings = judge(&host, &examined, &wanted).into_iter();
        findings.map(|finding| (finding.fatal, finding.trouble.wrong)).collect()
    }

    #[test]
    fn a_host_in_order_has_no_findings() {
        assert_eq!(wrong(|_| {}), []);
    }

    #[test]
    fn what_keeps_a_run_from_working_is_told_from_what_spoils_it() {
        let one = |change: fn(&mut Examined)| {
            let findings = wrong(change);
            assert_eq!(findings.len(), 1, "{findings:?}");
            findings.into_iter().next().unwrap()
        };
        let fatal = |text: &str| (true, text.to_owned());
        let warning = |text: &str| (false, text.to_owned());
        assert_eq!(
            one(|it| it.facts.version = "0.0.9".into()),
            fatal("its program is version 0.0.9 (protocol 2)")
        );
        assert_eq!(
            one(|it| it.facts.interface = None),
            fatal("none of its interfaces (lo, wlan0) has the address 10.0.0.1")
        );
        assert_eq!(
            one(|it| it.facts.interface = Some("eth0".into())),
            fatal("10.0.0.1 is the address of eth0, not of wlan0; it has lo, wlan0")
        );
        assert_eq!(
            one(|it| it.facts.refused_ports = vec![(5000, "in use".into())]),
            fatal("UDP port 5000 cannot be used (in use)")
        );
        assert_eq!(
            one(|it| it.facts.board.disk_available_bytes = 5000),
            fatal("only 5.0 kB of space in /var/tmp are free")
        );
        assert_eq!(
            one(|it| it.facts.missing_capabilities = Some("CAP_NET_RAW".into())),
            warning("it cannot capture packets: CAP_NET_RAW is missing")
        );
        assert_eq!(
            one(|it| it.facts.board.governor = Some("ondemand".into())),
            warning("its governor is ondemand")
        );
        assert_eq!(one(|it| it.facts.has_torch = false), fatal("its program has no engine torch"));
        assert_eq!(
            one(|it| it.facts.offloads = vec!["tso".into(), "gro".into()]),
            warning("tso, gro of wlan0 is on: packets are captured joined")
        );
        assert_eq!(one(|it| it.facts.board.throttled_bits = Some(1)), warning("it is throttled now"));
        let (fatal, text) = one(|it| it.utc.offset_ns = -3_600_000_000_000);
        assert!(!fatal && text.ends_with("behind"), "{text}");
    }

    #[test]
    fn hosts_of_one_architecture_have_the_same_build() {
        let hosts = inventory::parse("10.0.0.[1:4]", false, None).unwrap();
        let facts = |architecture: &str, program: u64| {
            let digest = Digest::of(&program.to_le_bytes());
            let mut facts = Facts { program_bytes: 5, program_digest: Some(digest), ..Facts::default() };
            facts.machine.architecture = architecture.into();
            facts
        };
        let facts = [facts("aarch64", 5), facts("armv7l", 4), facts("aarch64", 5), facts("aarch64", 6)];
        let pairs: Vec<_> = hosts.iter().zip(facts.iter().map(Some)).collect();
        let found = compare(&pairs);
        let wrong: Vec<_> = found.iter().flatten().map(|finding| finding.trouble.wrong.as_str()).collect();
        let [wrong] = wrong[..] else { panic!("{wrong:?}") };
        assert!(
            wrong.starts_with("its program is another build than that of 10.0.0.1 (5 B, BLAKE3 "),
            "{wrong}"
        );
        assert!(found[3].is_some());
    }
}
